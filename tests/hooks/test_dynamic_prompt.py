"""Prompts that change over the steps, and words with weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research import Hook, LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG, NoGuidance
from research.hooks import DynamicPrompt
from research.hooks.dynamic_prompt import keys_of
from research.hooks.emphasis import token_places
from research.tasks import ImageToImage, Inpaint, Interpolation, TextToImage

pytestmark = pytest.mark.spread(2)


def run(model, *hooks, seeds=(1, 2), scheduler="ddim", steps=5, guidance=None, task=None, **arguments):
    sampler = LoopSampler(model, scheduler, guidance=guidance or CFG(2.0), hooks=hooks)
    return sampler.sample(task or TextToImage("a cat"), seeds=list(seeds), steps=steps, **arguments)


class Asked(Hook):
    """The embeddings that each stage was evaluated with, by branch."""

    def on_start(self, run):
        self.run, self.stages, self.conditions = run, [], []

    def post_model(self, state, predictions):
        self.stages.append({b.name: b.condition.embeds for b in state.branches})
        self.conditions.append({b.name: b.condition for b in state.branches})

    def texts(self, *known, branch="cond"):
        """Which of some sentences each stage had."""
        encoded = {text: self.run.model.text.encode([text]) for text in known}
        return [
            next((text for text, e in encoded.items() if torch.equal(e[0], stage[branch][0])), None)
            for stage in self.stages
        ]


# --- which sentence when


@pytest.mark.parametrize(
    "prompts",
    [
        [{"prompt": "a dog", "until": 0.4}, {"prompt": "a fox", "until": 0.8}, {"prompt": "a cat"}],
        [{"prompt": "a dog", "until": 0.4}, {"prompt": "a fox", "until": 0.8}],
        {0.0: "a dog", 0.4: "a fox", 0.8: "{prompt}"},
        {"0": "a dog", "0.4": "a fox", "0.8": "a cat"},
    ],
)
@pytest.mark.parametrize("scheduler", ["ddim", "heun", "pndm", "dpm2"])
@pytest.mark.spread(4)
@pytest.mark.slow
def test_the_parts_count_the_users_steps(sd, prompts, scheduler):
    asked = Asked()
    run(sd, DynamicPrompt(prompts), asked, scheduler=scheduler)
    expected = {0: "a dog", 1: "a dog", 2: "a fox", 3: "a fox", 4: "a cat"}
    assert asked.texts("a dog", "a fox", "a cat") == [expected[stage.step] for stage in asked.run.timeline]


def test_it_equals_another_prompt_from_the_start(sd):
    dog = run(sd, task=TextToImage("a dog", "a fox"))
    for hook in (
        DynamicPrompt("a dog", negative="a fox"),
        DynamicPrompt({0.0: "a dog"}, negative=[{"prompt": "a fox"}]),
        DynamicPrompt([{"prompt": "a dog", "until": 1.0}], negative={0: "a fox", 1.0: "never"}),
    ):
        assert torch.equal(run(sd, hook).latents, dog.latents)


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "pndm", "dpmpp_2m", "euler_a"])
@pytest.mark.spread(1)
def test_idle_ones_are_bit_equal_to_none(sd, scheduler):
    plain = run(sd, scheduler=scheduler)
    for hook in (
        DynamicPrompt("{prompt}"),
        DynamicPrompt({1.0: "a dog"}, negative={1.0: "a dog"}),
        DynamicPrompt(weights={"cat": 1.0}),
        DynamicPrompt(weights={"cat": {"weight": 3.0, "steps": [0.5, 0.5]}}),
    ):
        result = run(sd, hook, scheduler=scheduler)
        assert torch.equal(result.latents, plain.latents)
        assert result.warnings == plain.warnings


def test_the_jobs_own_prompts_fill_in(sd):
    asked = Asked()
    task = TextToImage(["a cat", "a dog", "an owl"], negative_prompt=["x", "y", "z"])
    hook = DynamicPrompt("b {prompt}", negative="c {negative_prompt} {prompt}")
    run(sd, hook, asked, seeds=[1, 2, 3], task=task, steps=1, batch_size=2)
    (last,) = asked.stages  # of the second batch, which has the third image
    assert torch.equal(last["cond"], sd.text.encode(["b an owl"]))
    assert torch.equal(last["uncond"], sd.text.encode(["c z an owl"]))


def test_a_batch_equals_singles(sd):
    task = TextToImage(["a cat", "a dog", "an owl"])
    hook = DynamicPrompt({0.0: "{prompt}", 0.4: "x {prompt}"}, negative="{prompt}", blend=True, weights={"a": 1.5})
    together = run(sd, hook, seeds=[1, 2, 3], task=task, scheduler="euler_a")
    alone = run(sd, hook, seeds=[1, 2, 3], task=task, scheduler="euler_a", batch_size=1)
    assert (together.latents - alone.latents).norm() / together.latents.norm() < 1e-4


def test_nothing_is_encoded_that_is_not_used(sd_directory):
    model = load_model(sd_directory, dtype="float32", device="cpu")
    encoded = []
    inner = model.text.encode_together
    model.text.encode_together = lambda texts: encoded.extend(texts) or inner(texts)
    hook = DynamicPrompt({0.0: "a dog", 0.5: "a fox", 1.0: "never"}, negative="a bad one")
    result = run(model, hook, guidance=NoGuidance(), steps=4)
    assert encoded == ["a dog", "a fox"]
    assert result.warnings == [
        "hooks.dynamic_prompt.negative: not used, because this guidance makes no such prediction."
    ]


def test_one_condition_as_long_as_nothing_changes(sd):
    """The denoiser joins conditions once; a new object a stage would cost that again."""
    asked = Asked()
    hook = DynamicPrompt({0.0: "a dog", 0.5: "a fox"}, weights={"fox": 2.0})
    run(sd, hook, asked, steps=10, scheduler="heun")
    assert len({id(c["cond"]) for c in asked.conditions}) == 2
    assert len({id(c["uncond"]) for c in asked.conditions}) == 1


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_with_any_scale(sd, scale):
    dog = run(sd, task=TextToImage("a dog", "a fox"), guidance=CFG(scale))
    found = run(sd, DynamicPrompt("a dog", negative="a fox"), guidance=CFG(scale))
    assert torch.equal(found.latents, dog.latents)


def test_with_tasks_that_start_from_a_picture(sd, sd_inpaint):
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1.0
    asked = Asked()
    run(sd, DynamicPrompt({0.0: "a dog", 0.8: "a fox"}), asked, task=ImageToImage("a", picture, 0.6))
    assert asked.texts("a dog", "a fox") == ["a dog", "a dog", "a fox"]  # of the full schedule's five steps
    hook = DynamicPrompt("a dog")
    for make in (lambda text: Inpaint(text, picture, mask), lambda text: ImageToImage(text, picture, 0.6)):
        model = sd_inpaint if isinstance(make("a"), Inpaint) else sd
        assert torch.equal(run(model, hook, task=make("a")).latents, run(model, task=make("a dog")).latents)


def test_the_path_between_prompts_keeps_its_own(sd):
    task = Interpolation(1, 2, 3, prompt=["a cat", "a dog"])
    plain, own = (run(sd, *hooks, seeds=[1], task=task) for hooks in ((), (DynamicPrompt("{prompt}"),)))
    assert torch.equal(plain.latents, own.latents)


# --- blending


def test_blending_goes_straight_and_arrives(sd):
    asked = Asked()
    run(sd, DynamicPrompt({0.0: "a dog", 0.6: "a fox"}, blend=True), asked, steps=10)
    dog, fox = sd.text.encode(["a dog"]), sd.text.encode(["a fox"])
    for step, stage in enumerate(asked.stages):
        share = min(step / 6, 1.0)
        torch.testing.assert_close(stage["cond"][:1], dog + share * (fox - dog), atol=1e-5, rtol=1e-5)
    assert torch.equal(asked.stages[0]["cond"][0], dog[0])
    assert torch.equal(asked.stages[-1]["cond"][0], fox[0])


# --- weights


def test_which_tokens_words_are(sd):
    # in the tiny tokenizer each letter is a token; 0 is the begin
    assert token_places(sd.text, "ab cab", "ab") == [1, 2, 4, 5]
    assert token_places(sd.text, "a cat", "cat") == [2, 3, 4]
    assert token_places(sd.text, "a cat", "dog") == []
    assert token_places(sd.text, "x" * 30 + " cat", "cat") == []  # beyond what the encoder takes


def test_words_of_the_zoo():
    model = load_model("emoji", dtype="float32", device="cpu")
    text = "cat face on a gray background"
    for words in ("cat", "gray background", "on a"):
        places = token_places(model.text, text, words)
        ids = model.text.tokenizer(text).input_ids
        assert model.text.tokenizer.decode([ids[p] for p in places]).strip() == words


@settings(max_examples=15, deadline=None)
@given(st.floats(0.0, 4.0), st.sampled_from(["cat", "a", "a cat"]))
@pytest.mark.fidelity("hooks/dynamic_prompt", source="this project", against="its formula", within="1e-5")
def test_what_a_weight_does(sd, weight, words):
    asked = Asked()
    run(sd, DynamicPrompt(weights={words: weight}), asked, steps=1)
    seen, plain, empty = asked.stages[0]["cond"], sd.text.encode(["a cat"]), sd.text.encode([""])
    places = token_places(sd.text, "a cat", words)
    for place in range(plain.shape[1]):
        w = weight if place in places else 1.0
        expected = empty[:, place] + w * (plain[:, place] - empty[:, place])
        torch.testing.assert_close(seen[:1, place], expected, atol=1e-5, rtol=1e-5)


def test_weights_in_a_part_of_the_steps_and_of_the_negative(sd):
    asked = Asked()
    hook = DynamicPrompt(weights={"cat": {"weight": 2.0, "steps": [0.4, 0.8]}}, negative_weights={"dog": 0.5})
    run(sd, hook, asked, task=TextToImage("a cat", "a dog"))
    assert asked.texts("a cat") == ["a cat", "a cat", None, None, "a cat"]
    assert asked.texts("a dog", branch="uncond") == [None] * 5


def test_weights_of_words_that_some_images_have(sd):
    asked = Asked()
    run(sd, DynamicPrompt(weights={"cat": 3.0}), asked, steps=1, task=TextToImage(["a cat", "a dog"]))
    first, second = asked.stages[0]["cond"]
    assert not torch.equal(first, sd.text.encode(["a cat"])[0])
    assert torch.equal(second, sd.text.encode(["a dog"])[0])


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({}, ": found neither prompts, negative nor weights"),
        ({"prompts": []}, r"\.prompts: found an empty list"),
        ({"prompts": {}}, r"\.prompts: found an empty list"),
        ({"prompts": 3}, r"\.prompts: found 3; accepted is a sentence, a list"),
        ({"prompts": ["a"]}, r"\.prompts\[0\]: found 'a'; accepted is \{prompt: \.\.\., until"),
        ({"prompts": [{"prompt": "a", "to": 1}]}, r"\.prompts\[0\]: found .*'to'"),
        ({"prompts": [{"prompt": 1}]}, r"\.prompts\[0\]\.prompt: found 1; accepted is a sentence"),
        ({"prompts": [{"prompt": "a"}, {"prompt": "b"}]}, r"\.prompts\[0\]\.until: must be given"),
        ({"prompts": [{"prompt": "a", "until": 0.5}, {"prompt": "b", "until": 0.4}]}, "until: found 0.4 after 0.5"),
        ({"prompts": [{"prompt": "a", "until": 0.0}]}, r"\.prompts\[0\]\.until: found 0 after 0"),
        ({"prompts": [{"prompt": "a", "until": 1.5}]}, r"\.prompts\[0\]\.until: found 1\.5; accepted is a number from 0 to 1"),
        ({"prompts": {0.5: "a", 0.2: "b"}}, r"\.prompts: found 0\.2 after 0\.5"),
        ({"prompts": {"half": "a"}}, r"\.prompts: found 'half'"),
        ({"prompts": {2: "a"}}, r"\.prompts: found 2\.0; accepted is a number from 0 to 1"),
        ({"negative": [{"prompt": None}]}, r"\.negative\[0\]\.prompt: found None"),
        ({"weights": ["red"]}, r"\.weights: found \['red'\]; accepted are words with their weights"),
        ({"weights": {"red": "much"}}, r"\.weights\.red: found 'much'; accepted is a number from 0"),
        ({"weights": {"red": -1}}, r"\.weights\.red: found -1"),
        ({"weights": {"red": math.nan}}, r"\.weights\.red: found nan"),
        ({"weights": {" ": 2}}, r"\.weights: found ' '; accepted are words"),
        ({"weights": {"red": {"weight": 1, "step": 2}}}, r"\.weights\.red: found 'step'; accepted are weight and steps"),
        ({"weights": {"red": {"weight": 1, "steps": [1, 0]}}}, r"\.weights\.red\.steps: found \[1, 0\]"),
    ],
)  # fmt: skip
def test_what_is_refused_when_it_is_made(arguments, found):
    with pytest.raises(ConfigError, match=f"^hooks\\.dynamic_prompt.*{found}") as caught:
        DynamicPrompt(**arguments)
    assert "\n" not in str(caught.value)


def test_words_that_occur_nowhere(sd):
    with pytest.raises(ConfigError, match=r"weights\.red: the words occur in no prompt of this job"):
        run(sd, DynamicPrompt("a dog", weights={"red": 2.0}))
    with pytest.raises(ConfigError, match=r"negative_weights\.cat: the words occur in no prompt"):
        run(sd, DynamicPrompt(negative_weights={"cat": 2.0}))


def test_a_negative_prompt_that_would_go_unused(sd):
    with pytest.raises(ConfigError, match=r"negative: found beside task\.negative_prompt"):
        run(sd, DynamicPrompt(negative="a fox"), task=TextToImage("a", "b"))


def test_models_without_text_and_two_of_them(sd, pixel):
    with pytest.raises(ConfigError, match="DynamicPrompt needs a model that takes text"):
        LoopSampler(pixel, hooks=[DynamicPrompt("a")])
    with pytest.raises(ConfigError, match="DynamicPrompt conflicts with DynamicPrompt, both change the prompt"):
        run(sd, DynamicPrompt("a"), DynamicPrompt("b"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5, unique=True).map(sorted), st.floats(0, 0.999))
def test_lists_and_mappings_say_the_same(ends, part):
    listed = [{"prompt": str(k), "until": end} for k, end in enumerate(ends)]
    mapping = dict(zip([0.0, *ends], [*map(str, range(len(ends))), "own"], strict=True))
    found, same = keys_of("k", listed, "own"), keys_of("k", mapping, "own")
    assert [f for f in found if f[0] < 1.0] == [s for s in same if s[0] < 1.0]
    expected = next((str(k) for k, end in enumerate(ends) if part < end), "own")
    assert [text for start, text in found if start <= part][-1] == expected
