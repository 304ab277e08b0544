"""Prompt -> 77 token ids: byte-pair encoding with the 49,408 entries of OpenAI's CLIP."""

import gzip
import warnings
from pathlib import Path

import ftfy
import torch
from tokenizers import (
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from tokenizers import (
    Tokenizer as FastTokenizer,
)
from torch import Tensor

START, END = 49406, 49407
LENGTH = 77  # places in the text encoder: start, up to 75 tokens, end
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # digits go one by one


class Tokenizer:
    """OpenAI's simple_tokenizer.py in the form that SD 1.x used, Hugging Face's CLIPTokenizer."""

    def __init__(self) -> None:
        path = Path(__file__).parent / "clip" / "bpe_simple_vocab_16e6.txt.gz"
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
        symbols = byte_symbols()
        words = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges)]
        vocabulary = {
            word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])
        }
        self.bpe = FastTokenizer(
            models.BPE(vocabulary, merges, unk_token="<|endoftext|>", end_of_word_suffix="</w>"),
        )
        self.bpe.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self.bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self.bpe.decoder = decoders.ByteLevel()
        self.bpe.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])

    def ids(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start and end. ftfy cleans it, as in SD."""
        return self.bpe.encode(ftfy.fix_text(text), add_special_tokens=False).ids

    def words(self, ids: list[int]) -> str:
        return self.bpe.decode(ids).replace("</w>", " ").strip()

    def frame(self, ids: list[int]) -> list[int]:
        """Start, up to 75 tokens, and the end token to the last of 77 places (OpenAI's own pads
        with 0). What does not fit is cut off, with a warning that names it."""
        kept, cut = ids[: LENGTH - 2], ids[LENGTH - 2 :]
        if cut:
            said = f"the prompt is {len(cut)} tokens too long; cut off: {self.words(cut)!r}"
            warnings.warn(said, stacklevel=3)
        return [START, *kept] + [END] * (LENGTH - 1 - len(kept))

    def __call__(self, prompts: list[str]) -> Tensor:
        """(B,) prompts -> (B, 77) int64."""
        return torch.tensor([self.frame(self.ids(prompt)) for prompt in prompts])


def byte_symbols() -> list[str]:
    """A printable character for each byte, in the vocabulary's order: first those that have one."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
