"""Tasks by the name a config gives them."""

from jaxvl.tasks.classify import ClassifyTask
from jaxvl.tasks.generate import GenerateTask
from jaxvl.tasks.pair_pretrain import PairPretrainTask
from jaxvl.tasks.pretrain import PretrainTask

TASKS = {
    "pretrain": PretrainTask,
    "generate": GenerateTask,
    "pair_pretrain": PairPretrainTask,
    "classify": ClassifyTask,
}
