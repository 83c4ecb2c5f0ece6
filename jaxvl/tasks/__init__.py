"""Tasks by the name a config gives them."""

from jaxvl.tasks.adversarial_vae import AdversarialVAETask
from jaxvl.tasks.answer_uncertainty import AnswerUncertaintyTask
from jaxvl.tasks.bayes_vae import BayesVAETask
from jaxvl.tasks.classify import ClassifyTask
from jaxvl.tasks.generate import GenerateTask
from jaxvl.tasks.linear_probe import LinearProbeTask
from jaxvl.tasks.match_and_answer import MatchAndAnswerTask
from jaxvl.tasks.pair_pretrain import PairPretrainTask
from jaxvl.tasks.pretrain import PretrainTask
from jaxvl.tasks.question_match import QuestionMatchTask
from jaxvl.tasks.region_vqa import RegionVQATask
from jaxvl.tasks.state_discrepancy import StateDiscrepancyTask

TASKS = {
    "pretrain": PretrainTask,
    "generate": GenerateTask,
    "pair_pretrain": PairPretrainTask,
    "classify": ClassifyTask,
    "region_vqa": RegionVQATask,
    "question_match": QuestionMatchTask,
    "answer_uncertainty": AnswerUncertaintyTask,
    "match_and_answer": MatchAndAnswerTask,
    "state_discrepancy": StateDiscrepancyTask,
    "adversarial_vae": AdversarialVAETask,
    "bayes_vae": BayesVAETask,
    "linear_probe": LinearProbeTask,
}
