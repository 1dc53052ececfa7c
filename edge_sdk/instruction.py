"""An instruction's text as the tokens that a policy reads before its first observation."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from edge_sdk.errors import BundleError, explain
from edge_sdk.text import TOKENIZER_FILE, check_prompt


class InstructionCodec:
    """The tokenizer of a checkpoint or bundle. Raises BundleError where the folder has none that can be read."""

    def __init__(self, folder: Path) -> None:
        try:
            self.tokenizer = Tokenizer.from_str((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(
                explain(str(folder), expected=f"a readable {TOKENIZER_FILE}", found=error, todo="Give one.")
            ) from error

    def encode(self, instruction: str) -> list[int]:
        """Token ids (length) of a text, one or more. Raises PromptError when it is empty."""
        return list(self.tokenizer.encode(check_prompt(instruction), add_special_tokens=False).ids)
