"""Readers of labelled sentences about one image or two: NLVR2, SNLI-VE, and JSON Lines of one's own."""

from jaxvl.data.sentences.labels import ENTAILMENT, TRUTH, Sentences
from jaxvl.data.sentences.nlvr2 import Nlvr2, parse_nlvr2
from jaxvl.data.sentences.own import JsonlEntailment, JsonlStatements, parse_entailment, parse_statements
from jaxvl.data.sentences.snli_ve import SnliVe, parse_snli_ve

__all__ = [
    "ENTAILMENT",
    "TRUTH",
    "JsonlEntailment",
    "JsonlStatements",
    "Nlvr2",
    "Sentences",
    "SnliVe",
    "parse_entailment",
    "parse_nlvr2",
    "parse_snli_ve",
    "parse_statements",
]
