"""Code generation on an H100: a small coder first, its own tests as the judge, a large one on doubt.

Qwen2.5-Coder-1.5B answers and writes tests for its answer; where too few pass, Qwen2.5-Coder-32B answers, helped by a
drafter: the 0.5B model, an EAGLE head, or look-ups in the prompt. Searched together: who is asked, thresholds, how many
solutions and tests each writes, drafter and look-ahead, bits of every model, batch. The objective is energy and
accuracy under a limit on the 95th percentile of the latency of the mixture.

``screenshots`` is the same question with a screenshot as context: Qwen2.5-VL 3B first, 7B on doubt (72B does not fit
one H100).

How good the stages are is a profile here, with round numbers that stand for a measured log: put your own in its place,
``Policy(cascade="answers.csv", acceptance={"draft": "steps.csv"})``; ``dse cascade answers.csv`` tells what it is
worth.
"""

from dse import CascadeProfile, Choice, Float, Policy, Scenario, Space, StageProfile, Study, read_model
from dse.model.drafters import eagle_head

large = read_model("qwen2.5-coder-32b")

study = Study(
    "code-generation-h100",
    model={
        "target": large,
        "stage1": "qwen2.5-coder-1.5b",
        "draft": "qwen2.5-coder-0.5b",
        "draft2": eagle_head(large),
    },
    scenario=Scenario(prompt_tokens=600, output_tokens=400),
    hardware="h100-sxm-80gb",
    policy=Policy(
        acceptance={"draft": 0.75, "ngram": 0.4},
        cascade=CascadeProfile(
            {
                "stage1": StageProfile(accuracy=0.65, auroc=0.75, test_right=0.9, test_wrong=0.35),
                "target": StageProfile(accuracy=0.88, auroc=0.75),
            },
            correlation=0.5,
            n_solutions=4,
        ),
        test_tokens=80,
    ),
    space=Space(
        {
            "target/draft": Choice("none", "ngram", "draft", "draft2"),
            "target/draft_tokens": Choice(0, 2, 4, 6),
            "target/weight_bits": Choice(4, 8, 16),
            "stage1/weight_bits": Choice(4, 8, 16),
            "draft/weight_bits": Choice(4, 8, 16),
        },
        cascade=Choice("target", "stage1", "stage1+target"),
        threshold=Float(0.0, 1.0, step=0.125),
        self_tests=Choice(0, 1, 2, 4, 8),
        solutions=Choice(1, 2, 4),
        batch=Choice(1, 4, 16, 64),
    ),
    objectives="min energy_j, max accuracy_ratio",
    constraints="latency_p95_s <= 6",
    trials=400,
)

vision = read_model("qwen2.5-vl-7b")

screenshots = Study(
    "screenshot-to-code-h100",
    model={"target": vision, "stage1": "qwen2.5-vl-3b", "draft": eagle_head(vision)},
    scenario=Scenario(images=1, image_px=(1280, 800), prompt_tokens=150, output_tokens=600),
    hardware="h100-sxm-80gb",
    policy=Policy(
        acceptance={"ngram": 0.35},
        cascade=CascadeProfile(
            {
                "stage1": StageProfile(accuracy=0.55, auroc=0.72, test_right=0.85, test_wrong=0.4),
                "target": StageProfile(accuracy=0.72, auroc=0.72),
            },
            correlation=0.6,
            n_solutions=2,
        ),
    ),
    space=Space(
        {
            "target/draft": Choice("none", "ngram", "draft"),
            "target/weight_bits": Choice(4, 8, 16),
            "stage1/weight_bits": Choice(4, 8, 16),
            "target/image_px": Choice(640, 960, 1280),
            "stage1/image_px": Choice(640, 960, 1280),
        },
        cascade=Choice("target", "stage1", "stage1+target"),
        threshold=Float(0.0, 1.0, step=0.125),
        self_tests=Choice(0, 2, 4),
        solutions=Choice(1, 2),
        batch=Choice(1, 4, 16),
    ),
    objectives="min energy_j, max accuracy_ratio",
    constraints="latency_p95_s <= 8",
    trials=200,
)

if __name__ == "__main__":
    for one in (study, screenshots):
        one.run()
        print(one.front())
