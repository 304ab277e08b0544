"""Weighted prompts: their syntax, and the text states they stand for."""

from minisd.prompts.states import text_states
from minisd.prompts.syntax import PromptError, parse

__all__ = ["PromptError", "parse", "text_states"]
