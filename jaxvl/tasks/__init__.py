"""Tasks by the name a config gives them."""

from jaxvl.tasks.answer_uncertainty import AnswerUncertaintyTask
from jaxvl.tasks.classify import ClassifyTask
from jaxvl.tasks.generate import GenerateTask
from jaxvl.tasks.pair_pretrain import PairPretrainTask
from jaxvl.tasks.pretrain import PretrainTask
from jaxvl.tasks.question_match import QuestionMatchTask
from jaxvl.tasks.region_vqa import RegionVQATask

TASKS = {
    "pretrain": PretrainTask,
    "generate": GenerateTask,
    "pair_pretrain": PairPretrainTask,
    "classify": ClassifyTask,
    "region_vqa": RegionVQATask,
    "question_match": QuestionMatchTask,
    "answer_uncertainty": AnswerUncertaintyTask,
}
