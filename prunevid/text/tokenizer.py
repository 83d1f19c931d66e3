"""Reading a tokenizer.json, and what its library raises."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from prunevid.errors import PruneVidError


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json as it is, but that it neither pads nor cuts. Raises PruneVidError where it cannot be used."""
    if not path.is_file():
        raise PruneVidError(f"{path}: the tokenizer is missing; download or export it again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:
        raise refusal(error, f"{path}: the tokenizer is damaged", "; download or export it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def refusal(error: BaseException, what: str, remedy: str = "") -> BaseException:
    """What to raise for an error out of the tokenizers library, whose panics are no Exception."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        said = " ".join(str(error).split())
        return PruneVidError(f"{what} ({said[:200]}){remedy}")
    return error
