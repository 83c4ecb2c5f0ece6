"""Evaluators by the name a config gives them."""

from jaxvl.evals.hypergraph import HypergraphEval
from jaxvl.evals.match import MatchEval
from jaxvl.evals.retrieval import RetrievalEval
from jaxvl.evals.speed import SpeedEval
from jaxvl.evals.vqa import MajorityBaseline, VQAEval

EVALS = {
    "vqa": VQAEval,
    "majority": MajorityBaseline,
    "retrieval": RetrievalEval,
    "match": MatchEval,
    "hypergraph": HypergraphEval,
    "speed": SpeedEval,
}
