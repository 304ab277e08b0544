"""Prompt -> 77 token ids: byte-pair encoding with the 49,408 entries of OpenAI's CLIP."""

import gzip
import warnings
from pathlib import Path

import ftfy
import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

VOCABULARY = 49408  # token ids
START, END = 49406, 49407
LENGTH = 77  # token ids of a prompt: start, up to 75 of the text, end
WORDS = r"'[s\x{17F}]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # single digits


class Tokenizer:
    """OpenAI's simple_tokenizer.py, in the form of transformers in 2022, which SD 1.x used."""

    def __init__(self) -> None:
        path = Path(__file__).parent / "vocab" / "bpe_simple_vocab_16e6.txt.gz"
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
        merges = [(a, b) for a, b in map(str.split, lines[1 : 49152 - 256 - 2 + 1])]
        symbols = byte_symbols()
        ends = ["<|startoftext|>", "<|endoftext|>"]
        words = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), *ends]
        vocabulary = {word: i for i, word in enumerate(words)}
        bpe = models.BPE(vocabulary, merges, unk_token=ends[1], end_of_word_suffix="</w>")
        self.bpe = tokenizers.Tokenizer(bpe)
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        steps = [normalizers.NFC(), spaces, normalizers.Lowercase()]
        self.bpe.normalizer = normalizers.Sequence(steps)
        split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
        to_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.bpe.pre_tokenizer = pre_tokenizers.Sequence([split, to_symbols])
        self.bpe.decoder = decoders.ByteLevel()
        # Normalized: OpenAI's lower-cases the text first, and then looks for these.
        self.bpe.add_special_tokens([AddedToken(word, normalized=True) for word in ends])

    def ids(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start and end. ftfy cleans it, as SD does."""
        return self.bpe.encode(ftfy.fix_text(text), add_special_tokens=False).ids

    def words(self, ids: list[int]) -> str:
        """The text that these token ids stand for."""
        return self.bpe.decode(ids).replace("</w>", " ").strip()

    def frame(self, ids: list[int]) -> list[int]:
        """77 token ids: start, up to 75 of the text, and end repeated (OpenAI's own pads with 0).

        A longer text is cut, with a warning that shows what is lost.
        """
        kept, cut = ids[: LENGTH - 2], ids[LENGTH - 2 :]
        if cut:
            lost = self.words(cut[:25]) + (" ..." if len(cut) > 25 else "")
            note = f"the text is {len(cut)} tokens too long; cut off: {lost!r}"
            warnings.warn(note, stacklevel=3)
        return [START, *kept] + [END] * (LENGTH - 1 - len(kept))

    def __call__(self, prompts: list[str]) -> Tensor:
        """(B,) prompts -> (B, 77) int64."""
        return torch.tensor([self.frame(self.ids(prompt)) for prompt in prompts])


def byte_symbols() -> list[str]:
    """A printable character for each byte, in the vocabulary's order: printable ones first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # !-~ ¡-¬ ®-ÿ
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
