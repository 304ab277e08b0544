"""Prompt -> 77 token ids, as CLIP was trained: byte-pair encoding with OpenAI's vocabulary of 49,408."""

import gzip
import warnings
from pathlib import Path

import ftfy
import torch
from tokenizers import Regex, Tokenizer as FastTokenizer, decoders, models, normalizers, pre_tokenizers
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
        vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
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

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt of any length, without start and end. Cleaned by ftfy first, as SD 1.x does it."""
        return self.bpe.encode(ftfy.fix_text(prompt), add_special_tokens=False).ids

    def words(self, ids: list[int]) -> str:
        return self.bpe.decode(ids).replace("</w>", " ").strip()

    def __call__(self, prompts: list[str]) -> Tensor:
        """(B,) prompts -> (B, 77) int64: start, the tokens, then the end token to the last place.

        What does not fit is cut off, with a warning that names it.
        """
        rows = []
        for prompt in prompts:
            ids = self.ids(prompt)
            kept, cut = ids[: LENGTH - 2], ids[LENGTH - 2 :]
            if cut:
                words = self.words(cut)
                warnings.warn(f"the prompt is {len(cut)} tokens too long; cut off: {words!r}", stacklevel=2)
            rows.append([START, *kept] + [END] * (LENGTH - 1 - len(kept)))  # padded with END: OpenAI's own pads with 0
        return torch.tensor(rows)  # (B, 77)


def byte_symbols() -> list[str]:
    """A printable character for each byte, in the vocabulary's order: those that are printable, then the rest."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
