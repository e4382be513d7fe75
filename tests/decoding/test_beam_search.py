"""Beam search on every family of decoders: against transformers' generate(), and against scoring every item alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from sidrec.decoding import output_head
from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.beams import best_first
from sidrec.decoding.exhaustive import leaf_log_probs
from sidrec.decoding.normaliser import NORMALISERS
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.shared_prefix import SharedPrefix, check_decoder
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError

SIZES = [6, 5, 7]
N_TOKENS = 64
VOCABULARY = SidVocabulary(start_token=40, first_tokens=(41, 47, 52), level_sizes=tuple(SIZES))
BEAMS = 5
SMALL = {
    "vocab_size": N_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES = {
    "qwen2": lambda: tf.Qwen2Config(**SMALL),
    "qwen2_sliding": lambda: tf.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": lambda: tf.Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "gemma": lambda: tf.GemmaConfig(**SMALL, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(
        **SMALL, head_dim=8, sliding_window=5, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
    "mistral": lambda: tf.MistralConfig(**SMALL, head_dim=8, sliding_window=5),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=N_TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None
    ),
    "phi": lambda: tf.PhiConfig(**SMALL, partial_rotary_factor=0.5),  # a head with a bias
    "cohere": lambda: tf.CohereConfig(**SMALL, logit_scale=0.25),
    "granite": lambda: tf.GraniteConfig(**SMALL, logits_scaling=0.5, embedding_multiplier=2.0),
}


def make_model(family: str, attention: str = "sdpa") -> tf.PreTrainedModel:
    """A random model whose choices differ: matrices five times as large as transformers starts them, biases not zero."""
    torch.manual_seed(1)
    config = FAMILIES[family]()
    if family == "gemma2":
        attention = "eager"  # the only one that soft-caps
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
            if name.endswith("bias"):
                parameter.normal_()
    return model


@dataclass
class Case:
    trie: SidTrie
    codes: Tensor  # int64 [N, L], row i is item i
    input_ids: Tensor
    mask: Tensor


@pytest.fixture(scope="module")
def case() -> Case:
    """60 items, five or more below every first code, and left-padded prompts of 4, 9 and 12 tokens."""
    generator = torch.Generator().manual_seed(0)
    paths = torch.tensor(list(itertools.product(*(range(size) for size in SIZES))))
    codes = paths[torch.randperm(len(paths), generator=generator)[:60]]
    lengths = torch.tensor([4, 12, 9])
    input_ids = torch.randint(1, 40, (3, 12), generator=generator)
    mask = (torch.arange(12) >= 12 - lengths[:, None]).long()
    return Case(SidTrie(codes, SIZES), codes, input_ids * mask, mask)


def tokens_of(codes: Tensor) -> Tensor:
    return codes + torch.tensor(VOCABULARY.first_tokens)


@torch.no_grad()
def by_generate(model: nn.Module, case: Case) -> tuple[Tensor, Tensor]:
    """Items and scores of transformers' own constrained beam search."""
    length = case.input_ids.shape[1]
    children: dict[tuple[int, ...], set[int]] = {}
    item_of = {tuple(row): item for item, row in enumerate(tokens_of(case.codes).tolist())}
    for row in item_of:
        for level in range(len(row)):
            children.setdefault(row[:level], set()).add(row[level])
    output = model.generate(
        input_ids=case.input_ids,
        attention_mask=case.mask,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=len(SIZES),
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=0,
        eos_token_id=None,
        prefix_allowed_tokens_fn=lambda _, ids: sorted(children[tuple(ids[length:].tolist())]),
        return_dict_in_generate=True,
        output_scores=True,
    )
    items = [item_of[tuple(row)] for row in output.sequences[:, length:].tolist()]
    return torch.tensor(items).view(-1, BEAMS), output.sequences_scores.view(-1, BEAMS)


@torch.no_grad()
def one_by_one(model: nn.Module, case: Case, request: int, normaliser: str) -> Tensor:
    """float64 [N]: log-probability of each item alone, from the model's own logits for prompt and item, without padding."""
    prompt = case.input_ids[request][case.mask[request].bool()]
    tokens = tokens_of(case.codes)
    rows = torch.cat([prompt.expand(len(tokens), -1), tokens[:, :-1]], dim=1)
    logits = model(input_ids=rows).logits[:, -len(SIZES) :].double()
    scores = torch.zeros(len(tokens), dtype=torch.float64)
    for item, level in itertools.product(range(len(tokens)), range(len(SIZES))):
        first = VOCABULARY.first_tokens[level]
        same = (case.codes[:, :level] == case.codes[item, :level]).all(1)
        columns = {
            "children": tokens[same, level].unique(),
            "level": torch.arange(first, first + SIZES[level]),
            "full": torch.arange(logits.shape[2]),
        }[normaliser]
        row = logits[item, level]
        scores[item] += row[tokens[item, level]] - row[columns].logsumexp(0)
    return scores


@pytest.mark.parametrize(
    ("family", "attention"), [*((f, "sdpa") for f in FAMILIES), ("qwen3", "eager"), ("gpt2", "eager")]
)
def test_with_the_full_normaliser_it_is_generate(family, attention, case):
    model = make_model(family, attention)
    check_decoder(model, VOCABULARY)
    items, scores = by_generate(model, case)
    beams = beam_search(model, case.input_ids, case.mask, VOCABULARY, case.trie, BEAMS, normaliser="full")
    assert torch.equal(beams.items, items)
    torch.testing.assert_close(beams.log_probs, scores, atol=1e-5, rtol=0)
    assert scores.std() > 0.01, "a model without opinions proves nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_normaliser_is_the_written_formula(family, case):
    """A beam as wide as the catalogue, and exhaustive scoring, both equal each item scored alone."""
    model = make_model(family)
    for normaliser in NORMALISERS:
        beams = beam_search(model, case.input_ids, case.mask, VOCABULARY, case.trie, 60, normaliser=normaliser)
        every = leaf_log_probs(model, case.input_ids, case.mask, VOCABULARY, case.trie, normaliser)
        for request in range(3):
            exact = one_by_one(model, case, request, normaliser)
            assert sorted(beams.items[request].tolist()) == list(range(60))
            torch.testing.assert_close(beams.log_probs[request], exact[beams.items[request]].float(), atol=1e-5, rtol=0)
            torch.testing.assert_close(every[request], exact[case.trie.item_of_leaf[:]].float(), atol=1e-5, rtol=0)
            assert (beams.log_probs[request].diff() <= 0).all()


ADAPTERS = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved_head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "sid_tokens": {"target_modules": ["q_proj"], "trainable_token_indices": list(range(40, 60))},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_that_are_not_merged(adapter, tied, case):
    torch.manual_seed(2)
    config = tf.Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=tied)
    bare = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in bare.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    before = beam_search(bare, case.input_ids, case.mask, VOCABULARY, case.trie, BEAMS, normaliser="full")
    model = get_peft_model(bare, LoraConfig(r=4, **ADAPTERS[adapter])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    check_decoder(model, VOCABULARY)
    items, scores = by_generate(model, case)
    beams = beam_search(model, case.input_ids, case.mask, VOCABULARY, case.trie, BEAMS, normaliser="full")
    assert torch.equal(beams.items, items)
    torch.testing.assert_close(beams.log_probs, scores, atol=1e-5, rtol=0)
    assert (before.log_probs - beams.log_probs).abs().max() > 0.1, "the adapter changes nothing"
    head = OutputHead.of(model)
    assert (head.module is not None) == (adapter == "head"), "only a LoRA on the head is run whole"


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "mistral"])
def test_bfloat16(family, case):
    """Half precision: the same contract, scores near float32's, and the scores of its own model run item by item."""
    model = make_model(family)
    exact = torch.stack([one_by_one(model, case, request, "children") for request in range(3)]).float()
    model = model.to(torch.bfloat16)
    check_decoder(model, VOCABULARY)
    beams = beam_search(model, case.input_ids, case.mask, VOCABULARY, case.trie, 60)
    one_at_a_time = torch.stack([one_by_one(model, case, request, "children") for request in range(3)]).float()
    for request in range(3):
        items = beams.items[request]
        assert sorted(items.tolist()) == list(range(60))
        assert (beams.log_probs[request] - one_at_a_time[request][items]).abs().max() < 0.25
        assert (beams.log_probs[request] - exact[request][items]).abs().max() < 0.5
        assert (one_at_a_time[request] - exact[request]).abs().max() > 1e-3, "not half precision"


def test_whatever_the_generation_config_and_the_tail_of_the_prompt(case):
    """A checkpoint that samples by default, and a prompt that ends in any token: neither is asked."""
    model = make_model("qwen3")
    plain = beam_search(model, case.input_ids, case.mask, VOCABULARY, case.trie, BEAMS)
    model.generation_config = tf.GenerationConfig(do_sample=True, top_k=2, temperature=9.0, num_beams=3, max_length=1)
    again = beam_search(model, case.input_ids, case.mask, VOCABULARY, case.trie, BEAMS)
    assert torch.equal(plain.items, again.items)
    assert torch.equal(plain.log_probs, again.log_probs)
    for tail in (1, 40, 63, VOCABULARY.first_tokens[1]):
        ids = torch.cat([case.input_ids, torch.full((3, 1), tail)], dim=1)
        mask = torch.cat([case.mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
        beams = beam_search(model, ids, mask, VOCABULARY, case.trie, 60)
        other = Case(case.trie, case.codes, ids, mask)
        for request in range(3):
            exact = one_by_one(model, other, request, "children")
            torch.testing.assert_close(beams.log_probs[request], exact[beams.items[request]].float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_static_shapes_find_the_same(normaliser, stochastic, case, monkeypatch):
    """What the model is given has the same shapes for any scores; without, a level whose codes are all forced is not run."""
    shapes: list[torch.Size] = []
    extend = SharedPrefix.extend

    def recorded(prefix, tokens, sees, depth):
        shapes.append(sees.shape)
        return extend(prefix, tokens, sees, depth)

    monkeypatch.setattr(SharedPrefix, "extend", recorded)
    codes = torch.cat([case.codes[:12], torch.tensor([[5, 0, 0], [5, 0, 1], [5, 1, 0]])])
    trie = SidTrie(codes.unique(dim=0), SIZES)
    beams, runs = [], []
    for family, is_static in (("qwen3", True), ("qwen3", False), ("gpt2", True)):
        shapes.clear()
        generators = [torch.Generator().manual_seed(i) for i in range(3)] if stochastic else None
        beams.append(
            beam_search(
                make_model(family),
                case.input_ids,
                case.mask,
                VOCABULARY,
                trie,
                4,
                generators=generators,
                normaliser=normaliser,
                static_shapes=is_static,
            )
        )
        runs.append(list(shapes))
    assert runs[0] == runs[2], "another model, other scores, the same shapes"
    assert len(runs[0]) == len(SIZES) - 1, "a step a code but the first, none for a forced end token"
    positions = [sum(width for _, width, _ in run) for run in runs]
    assert positions[1] < positions[0] if normaliser == "children" else positions[1] == positions[0]
    assert torch.equal(beams[0].items, beams[1].items)
    torch.testing.assert_close(beams[0].log_probs, beams[1].log_probs, atol=1e-6, rtol=0)
    if stochastic:
        torch.testing.assert_close(beams[0].draws.weights, beams[1].draws.weights, atol=1e-5, rtol=1e-4)


def test_a_compiled_decoder_has_one_graph_a_level(case):
    """New prompts, other paddings and other choices neither break the graph nor make another."""
    model, plain = make_model("qwen3"), make_model("qwen3")
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model.model.forward = torch.compile(model.model.forward, backend=count, dynamic=False, fullgraph=True)
    for shift in (0, 1, 7):
        ids = (case.input_ids + shift) % 40 * case.mask.roll(shift, dims=0)
        mask = case.mask.roll(shift, dims=0)
        beams = beam_search(model, ids, mask, VOCABULARY, case.trie, BEAMS, static_shapes=True)
        wanted = beam_search(plain, ids, mask, VOCABULARY, case.trie, BEAMS)
        assert torch.equal(beams.items, wanted.items)
        torch.testing.assert_close(beams.log_probs, wanted.log_probs, atol=1e-5, rtol=0)
        assert len(graphs) == len(SIZES)
    torch.compiler.reset()


def test_the_sum_over_all_tokens_in_parts(monkeypatch):
    monkeypatch.setattr(output_head, "CPU_CHUNK", 1)
    head = OutputHead(torch.randn(3000, 8), torch.randn(3000), softcap=2.0, scale=0.5)
    hidden = torch.randn(5, 8)
    logits = (hidden @ head.weight.T + head.bias) * 0.5
    torch.testing.assert_close(head.log_sum(hidden), (2 * torch.tanh(logits / 2)).logsumexp(1))
    torch.testing.assert_close(head.logits(hidden, 1000, 2500), 2 * torch.tanh(logits / 2)[:, 1000:2500])


def test_models_that_cannot_be_decoded_are_named(case):
    model = make_model("qwen3")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="Qwen3ForCausalLM was loaded with flash_attention_2 attention"):
        check_decoder(model, VOCABULARY)
    model = make_model("qwen3")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="Qwen3ForCausalLM has layers of kind linear_attention"):
        check_decoder(model, VOCABULARY)
    model = make_model("cohere")
    model.logit_scale = 0.5  # its config says 0.25
    with pytest.raises(InputError, match="CohereForCausalLM does more to its logits"):
        check_decoder(model, VOCABULARY)
    model = make_model("qwen3")
    with torch.no_grad():
        model.lm_head.weight[50] = torch.nan
    for generators in (None, [torch.Generator() for _ in range(3)]):
        with pytest.raises(InputError, match="not numbers"):
            beam_search(model, case.input_ids, case.mask, VOCABULARY, case.trie, BEAMS, generators=generators)


def test_the_best_are_first_and_of_equal_keys_the_lower_node():
    generator = torch.Generator().manual_seed(0)
    for n in (1, 7, 40):
        keys = torch.randint(-3, 3, (20, 40), generator=generator) / 2
        keys[0] = 0.0
        keys[0, ::2] = -0.0
        keys[1, :30] = -torch.inf
        nodes = torch.stack([torch.randperm(40, generator=generator) for _ in range(20)])
        best = best_first(keys, nodes, n)
        for row in range(20):
            wanted = sorted(range(40), key=lambda i, row=row: (-float(keys[row, i]), int(nodes[row, i])))
            assert best[row].tolist() == wanted[:n]
    values = torch.tensor([[1e-38, -1e-38, 3e38, -3e38, torch.inf, -torch.inf, 0.5]])
    assert values[0, best_first(values, torch.arange(7)[None], 7)[0]].tolist() == sorted(
        values[0].tolist(), reverse=True
    )
    assert best_first(torch.tensor([[1.0, torch.nan, -torch.nan]]), torch.arange(3)[None], 3)[0].tolist() == [1, 2, 0]
