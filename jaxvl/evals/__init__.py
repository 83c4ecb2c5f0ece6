"""Evaluators by the name a config gives them."""

from jaxvl.evals.accuracy import AccuracyEval, MajorityClass
from jaxvl.evals.hypergraph import HypergraphEval
from jaxvl.evals.match import MatchEval
from jaxvl.evals.retrieval import RetrievalEval
from jaxvl.evals.speed import SpeedEval
from jaxvl.evals.vqa import MajorityBaseline, VQAEval

EVALS = {
    "vqa": VQAEval,
    "majority": MajorityBaseline,
    "accuracy": AccuracyEval,
    "majority_class": MajorityClass,
    "retrieval": RetrievalEval,
    "match": MatchEval,
    "hypergraph": HypergraphEval,
    "speed": SpeedEval,
}
