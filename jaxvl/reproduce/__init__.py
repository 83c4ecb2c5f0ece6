"""Tables of papers as data, and the command that fills them."""

from jaxvl.reproduce.command import TABLES, Options, find, list_tables, reproduce, seed_list

__all__ = ["TABLES", "Options", "find", "list_tables", "reproduce", "seed_list"]
