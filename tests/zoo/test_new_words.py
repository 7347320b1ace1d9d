"""Words that no base clip has stand beside words of their kind, so that they mean one thing in every caption."""

from __future__ import annotations

import torch

from engine.demo.kits import POCKET
from engine.families.wan import text as wan_text
from zoo.captions import VOCABULARY, caption
from zoo.new_words import KIN, settled
from zoo.pocket_wan import TEXT_NAME
from zoo.scenes import concept_scene, random_scene

ENOUGH = 0.7  # mean cosine of a word's states; "circle" has 0.92, "hexagon" had 0.46 and "striped" 0.28


def test_the_table_has_the_words_of_concepts_and_no_others() -> None:
    base = {word for seed in range(3000) for word in caption(random_scene(seed, split="train"), seed=seed).split()}
    assert set(KIN) == set(VOCABULARY) - base
    assert all(set(kin) <= base for kin in KIN.values())


def test_a_new_word_becomes_the_mean_of_its_kin_and_the_others_stay() -> None:
    words = list(dict.fromkeys([*KIN, *(other for kin in KIN.values() for other in kin)]))
    table = torch.randn(len(words), 8, generator=torch.Generator().manual_seed(0))
    found = settled(table, lambda word: [words.index(word)])
    kin = table[[words.index(word) for word in KIN["stripes"]]]
    row = found[words.index("stripes")]
    assert torch.cosine_similarity(row, kin.mean(0), dim=0) > 0.9999
    assert torch.isclose(row.norm(), kin.norm(dim=1).mean())
    old = [words.index(word) for word in words if word not in KIN]
    assert torch.equal(found[old], table[old])
    assert torch.allclose(settled(found, lambda word: [words.index(word)]), found), "doing it again changes nothing"


def test_the_shipped_text_encoder_has_one_state_for_a_new_word() -> None:
    encoder = wan_text.load({"t5": str(POCKET / TEXT_NAME)}, device=torch.device("cpu"), dtype=torch.float32)
    texts = [caption(concept_scene("striped_hexagon", seed), seed=seed) for seed in range(60)]
    texts = [text for text in texts if " striped " in text]
    for word in ("hexagon", "striped"):
        states = []
        for text in texts:
            ids = torch.tensor([encoder.tokenizer.ids(text)])
            states.append(wan_text.encode_ids(encoder.model, ids, torch.ones_like(ids))[0, text.split().index(word)])
        alike = torch.nn.functional.normalize(torch.stack(states), dim=1)
        cosines = (alike @ alike.T)[~torch.eye(len(alike), dtype=torch.bool)]
        assert cosines.mean() > ENOUGH, word
