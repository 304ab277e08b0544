"""CLIP's text encoder (ViT-L/14 in SD 1.x): token ids -> text states, a vector for each of the 77.

Attribute names are the checkpoint's keys after `cond_stage_model.transformer.text_model.`
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from minisd.attention import attention
from minisd.tokenizer import LENGTH, VOCABULARY


class Embeddings(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.position_embedding = nn.Embedding(LENGTH, width)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, 77)
        return self.token_embedding(tokens) + self.position_embedding.weight  # (B, 77, C)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(attention(q, k, v, self.heads, causal=True))  # (B, 77, C)


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)  # (B, 77, hidden)
        # OpenAI's quick GELU, because CLIP was trained with it and not with the exact GELU.
        return self.fc2(h * torch.sigmoid(1.702 * h))  # (B, 77, C)


class Layer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=1e-5)
        self.self_attn = SelfAttention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:  # (B, 77, C)
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """Radford et al. 2021; SD 1.x: width 768, 12 layers, MLP of 3072, 12 heads."""

    def __init__(self, width: int = 768, layers: int = 12, hidden: int = 3072, heads: int = 12):
        super().__init__()
        self.embeddings = Embeddings(width)
        stack = nn.Sequential(*(Layer(width, hidden, heads) for _ in range(layers)))
        self.encoder = nn.Sequential(OrderedDict(layers=stack))
        self.final_layer_norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 77) ids -> (B, 77, C): the last hidden states, normalised. Padding is not masked."""
        tokens = tokens.to(self.final_layer_norm.weight.device)
        return self.final_layer_norm(self.encoder(self.embeddings(tokens)))
