"""The SFT loss and the packed group log-probabilities: values and gradients against the plain computation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_sids

from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.rl.group_log_probs import group_log_probs, pack_groups
from sidrec.rl.rewards import exact_hit, prefix_credit
from sidrec.sft.backbone import add_dropout
from sidrec.sft.examples import ExampleCollator, ExampleRenderer
from sidrec.sft.own_text import TOKENS
from sidrec.sft.settings import TASKS, TaskConfig
from sidrec.sft.tasks import task_rows
from sidrec.sft.trainer import answer_loss
from sidrec.sft.vocabulary import add_sid_tokens


@pytest.fixture
def recommender(tiny_model):
    model, tokenizer = tiny_model
    sids = make_sids(40, [4, 4, 5])
    vocabulary = add_sid_tokens(model, tokenizer, sids, [""] * sids.n_items, "codebook", seed=0)
    return Recommender.build(model, Renderer.build(sids, vocabulary, max_items=8), sids)


def gradients(model) -> dict[str, torch.Tensor]:
    by_name = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return by_name


@pytest.mark.parametrize("normaliser", ["children", "level", "full"])
def test_answer_loss_is_the_cross_entropy_of_the_answers_words_and_codes(recommender, normaliser):
    """A batch of all kinds of examples: words among the whole vocabulary, codes among what `normaliser` says."""
    model, trie = recommender.model, recommender.trie
    renderer = replace(recommender.renderer, normaliser=normaliser)
    words = [[10 + item % 7, 30, 40 + item % 11] for item in range(40)]
    render = ExampleRenderer(renderer, words, [row[:2] for row in words], end_token=1, openings={})
    render = replace(render, own_texts=[[10 + place % 40 for place in range(TOKENS)]])
    tasks = TaskConfig(
        text_to_item=0.1,
        item_to_text=0.1,
        titles_to_next_item=1,
        history_to_next_title=1,
        next_item_windows=0.5,
        own_text=1,
    )
    sequences = [np.array([3, 1, 7, 9, 2]), np.array([5, 6])]
    rows = task_rows(sequences, render.words, 3, 4, tasks, seed=0, own_texts=1)
    assert set(rows["task"]) == set(TASKS) - {"question_to_item"}  # an answer as that of titles_to_next_item
    batch = ExampleCollator(render, pad_token=0)(list(rows))
    loss = answer_loss(model, OutputHead.of(model), batch, renderer, trie)
    loss.backward()
    ours = gradients(model)

    expected = torch.zeros(())
    codes = renderer.item_tokens - torch.tensor(renderer.vocabulary.first_tokens)
    counted = 0
    for ids, items, labels in zip(batch["input_ids"], batch["items"], batch["labels"], strict=True):
        logits = model(ids[None]).logits[0]
        sids = {at: int(item) for at, item in enumerate(items) if item >= 0}
        for at in (labels != -100).nonzero().flatten().tolist():
            begin = next((start for start in sids if start <= at < start + 3), None)
            row, level = logits[at - 1], 0 if begin is None else at - begin
            rivals = torch.arange(len(row))
            if begin is not None and normaliser != "full":
                item, first = sids[begin], renderer.vocabulary.first_tokens[level]
                same = (codes[:, :level] == codes[item, :level]).all(1)
                everything = torch.arange(renderer.vocabulary.level_sizes[level])
                rivals = first + (codes[same, level].unique() if normaliser == "children" else everything)
            expected = expected - row[labels[at]] + row[rivals].logsumexp(0)
            counted += 1
    assert counted == (batch["labels"] != -100).sum() > 60
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)


def test_packed_groups_equal_repeated_prompts_in_value_and_gradient(recommender):
    """Rows shuffled, prompts of different lengths, one prompt twice as frequent as the others."""
    model, trie, renderer = recommender.model, recommender.trie, recommender.renderer
    histories = [np.array([3, 1]), np.array([7, 8, 9, 2]), np.array([5])]
    row_history = torch.tensor([0, 1, 2, 1, 0, 1, 1, 2])
    items = torch.tensor([4, 4, 9, 11, 17, 0, 31, 22])
    prompt_ids, prompt_mask = renderer.batch([histories[i] for i in row_history])
    head = OutputHead.of(model)
    group = group_log_probs(model, head, prompt_ids, prompt_mask, items, renderer.vocabulary, trie)
    log_probs, entropies = group.chosen, group.entropies
    weights = torch.randn(8, 3)
    (log_probs * weights).sum().backward()
    ours = gradients(model)

    one_by_one = []
    for i, item in zip(row_history.tolist(), items.tolist(), strict=True):
        ids = torch.cat([renderer.tokens(histories[i]), renderer.item_tokens[item]])[None]
        hidden = model(ids, output_hidden_states=True).hidden_states[-1][0, -4:-1]
        from sidrec.decoding.policy import item_log_probs

        one_by_one.append(item_log_probs(hidden[None], torch.tensor([item]), head, renderer.vocabulary, trie)[0])
    expected = torch.stack(one_by_one)
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)
    (expected * weights).sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)
    assert (entropies >= -1e-6).all()
    for level, distribution in enumerate(group.levels):
        torch.testing.assert_close(distribution.exp().sum(1), torch.ones(8))
        assert distribution.shape == (8, renderer.vocabulary.level_sizes[level])
    lists = recommender.recommend([histories[i] for i in row_history], k=40, exclude_seen=False)
    served = {
        (row, item): lp for row in range(8) for item, lp in zip(lists.items[row], lists.log_probs[row], strict=True)
    }
    for row, item in enumerate(items.tolist()):  # what training sees is what serving ranks by
        assert served[row, item] == pytest.approx(log_probs[row].sum().item(), abs=1e-4)


def test_pack_groups_puts_every_row_in_its_own_slot():
    prompts = torch.tensor([[0, 5], [1, 5], [0, 5], [0, 5], [1, 5]])
    packed = pack_groups(prompts, torch.ones_like(prompts))
    assert packed.row.shape == (2, 3)
    assert packed.row.flatten()[packed.slot_of_row].tolist() == [0, 1, 2, 3, 4]
    for group, slots in enumerate(packed.row):
        assert (prompts[slots] == packed.prompt_ids[group]).all()


def test_rewards_by_hand():
    wanted = [(1, 2, 3)] * 4
    drawn = [(1, 2, 3), (1, 2, 4), (1, 3, 3), (0, 2, 3)]
    assert exact_hit(drawn, wanted, prompts=None) == [1.0, 0.0, 0.0, 0.0]
    assert prefix_credit(drawn, wanted) == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])


def test_dropout_acts_in_training_only_and_leaves_no_trace_in_the_model(tiny_model):
    model, _ = tiny_model
    names = set(model.state_dict())
    add_dropout(model, 0.5)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)
    assert set(model.state_dict()) == names
