"""Objectives and scores of active learning as pure functions of arrays: information, uncertainty, acquisition."""
