"""Modules, shapes and work against the same configs instantiated by transformers. Needs the ``torch`` extra.

Counts and shapes are compared on the meta device: for all of the catalogue, for configs as the hub has them, and for
small odd ones. Work is compared by running the small ones and counting the matrix products of each module.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from dse.model import Model, ModuleKind, OpKind, model_names, read_model
from dse.model.counting import attended
from dse.model.defaults import CLASS_DEFAULTS

SAMPLES = json.loads((Path(__file__).parent / "samples.json").read_text())["configs"]
HUB = json.loads((Path(__file__).parent / "hub.json").read_text())["configs"]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import flop_registry  # noqa: E402
from transformers import CONFIG_MAPPING  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    # transformers warns about its own future; nothing here depends on it.
    pytest.mark.filterwarnings("ignore"),
]
transformers.logging.set_verbosity_error()

_CLASSES = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "CAUSAL_LM")

# What transformers 5 would misread: fields of which it has no class, or whose meaning moved (see the reader).
NOT_READABLE = {"InternVL2_5-8B"}


def instantiate(config, device="meta"):
    """The model that transformers makes of a config: its own class for generation."""
    fields = dict(config)
    made = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    for task in _CLASSES:
        mapping = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING", {})
        if type(made) in mapping:
            found = mapping[type(made)]
            cls = found[0] if isinstance(found, tuple) else found
            with torch.device(device):
                return cls._from_config(made, attn_implementation="eager", experts_implementation="eager")
    raise AssertionError(f"no class for {config['model_type']}")


CATALOGUE = {name: read_model(name).config for name in model_names()}
READABLE = {name: entry["config"] for name, entry in HUB.items() if name not in NOT_READABLE}
ALL = CATALOGUE | READABLE | SAMPLES


@pytest.fixture(scope="module")
def theirs():
    """Instantiated models by name, one at a time."""
    kept = {}

    def get(name):
        if name not in kept:
            kept.clear()
            kept[name] = instantiate(ALL[name])
        return kept[name]

    return get


@pytest.mark.validates("models", "parameters, 38 architectures", "transformers on PyTorch's meta device", "equal")
@pytest.mark.parametrize("name", ALL)
def test_parameters_are_equal_to_the_unit(name, theirs):
    ours = Model.from_config(ALL[name], name)
    # DeepSeek-V3 corrects its routing by trained biases that transformers keeps as buffers; they are parameters here.
    biases = sum(m.n_params() for m in ours.modules if m.leaf.endswith("e_score_correction_bias"))
    buffers = sum(b.numel() for n, b in theirs(name).named_buffers() if n.endswith("e_score_correction_bias"))
    assert biases == buffers
    assert ours.n_params - biases == sum(p.numel() for p in theirs(name).parameters())


@pytest.mark.validates("models", "every linear layer and its shape", "transformers on PyTorch's meta device", "equal")
@pytest.mark.parametrize("name", ALL)
def test_every_linear_layer_is_in_the_table_with_its_shape(name, theirs):
    ours = Model.from_config(ALL[name], name)
    table = {m.path: shape(ours, m) for m in ours.modules if m.kind is ModuleKind.LINEAR}
    layers = {
        path: (layer.in_features, layer.out_features, layer.bias is not None)
        for path, layer in theirs(name).named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert {path: table.get(path) for path in layers} == layers


@pytest.mark.parametrize("name", ALL)
def test_every_module_of_the_table_is_a_tensor_of_that_size(name, theirs):
    ours = Model.from_config(ALL[name], name)
    tensors = dict(theirs(name).named_parameters(remove_duplicate=False)) | dict(theirs(name).named_buffers())
    for module in ours.modules:
        tensor = tensors.get(f"{module.path}.weight", tensors.get(module.path))
        assert tensor is not None, module.path
        assert tensor.numel() == module.n_weights(*units(ours, module)), module.path
    heads = {m.path for m in ours.modules if m.tied_to}
    tied = {p for p in heads if tensors[f"{p}.weight"] is tensors[f"{ours.module(p).tied_to}.weight"]}
    assert heads == tied


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("name", ["llava, two feature layers, all positions", "llava_next", "gemma3", "idefics3",
                                  "qwen2_vl, nested fields", "internvl, small tower's norms"])  # fmt: skip
def test_a_head_is_tied_where_transformers_ties_it(name, outside, inside):
    config = copy.deepcopy(SAMPLES[name]) | {"tie_word_embeddings": outside}
    config["text_config"]["tie_word_embeddings"] = inside
    assert Model.from_config(config, name).n_params == sum(p.numel() for p in instantiate(config).parameters())


def shape(ours, module):
    kept = units(ours, module)
    return module.in_dim.size(*kept), module.out_dim.size(*kept), module.bias


def units(ours, module):
    return ours.units.get((module.component, module.block), (0, 0))


def _config_class(model_type):
    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    for name in CONFIG_MAPPING:
        for spec in getattr(CONFIG_MAPPING[name], "sub_configs_defaults", {}).values():
            if getattr(spec.config_class, "model_type", None) == model_type:
                return spec.config_class
    return None


OWN_DEFAULTS = {"internlm2", "intern_vit_6b", "internvl_chat"}


@pytest.mark.parametrize("model_type", [t for t in CLASS_DEFAULTS if "/" not in t and t not in OWN_DEFAULTS])
def test_defaults_are_those_of_the_class(model_type):
    cls = _config_class(model_type)
    stated = {f.name: f.default for f in dataclasses.fields(cls)}
    settled = cls()
    for name, value in CLASS_DEFAULTS[model_type].items():
        # Where the class computes the default afterwards, the data has the result.
        theirs = stated[name] if stated[name] is not None or value is None else getattr(settled, name)
        assert (list(theirs) if isinstance(theirs, tuple) else theirs) == value, name


# ---- work ------------------------------------------------------------------------------------------------------------

PROMPT, STEPS = 23, 3


class Work(TorchDispatchMode):
    """Counts the matrix products of each module by itself, without those of the modules in it."""

    def __init__(self, model):
        super().__init__()
        self.flops, self.inside = {}, [""]
        self.hooks = []
        for path, module in model.named_modules():
            self.hooks += [
                module.register_forward_pre_hook(lambda *_, path=path: self.inside.append(path)),
                module.register_forward_hook(self._leave),
            ]

    def _leave(self, *_):
        self.inside.pop()  # and returns nothing: a hook's result would replace the module's

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            own = self.flops.setdefault(self.inside[-1], {})
            name = func._overloadpacket.__name__
            own[name] = own.get(name, 0) + formula(*args, **(kwargs or {}), out_val=out)
        return out


def counted(model, run):
    """Run, and return the result with the operations that each module counted."""
    work = Work(model)
    with work, torch.no_grad():
        out = run()
    for hook in work.hooks:
        hook.remove()
    return out, work.flops


def layer_flops(flops, path):
    """The products with a weight."""
    return sum(n for op, n in flops.get(path, {}).items() if op in ("mm", "addmm", "convolution"))


def check_layers(ours, phase, rows, flops):
    """Compare every linear operator whose module counted anything, and report how many were compared."""
    n_compared = 0
    for op in ours.graph(phase).ops:
        if op.kind is not OpKind.LINEAR or not flops.get(op.module):
            continue
        kept = ours.units.get((op.component, op.block), (0, 0))
        expected = 2 * rows[op.rows] * op.n_active * op.n_weights(*kept)
        assert layer_flops(flops, op.module) == expected, op.name
        n_compared += 1
    return n_compared


def check_attention(ours, phase, rows, spans, flops, *, within=""):
    """Compare scores and values of every block; eager attention computes masked pairs, too, so masks are left out."""
    n_compared = 0
    by_block = {}
    for op in ours.graph(phase).ops:
        if op.kind in (OpKind.SCORE, OpKind.VALUE) and op.component == within:
            kept = ours.units[op.component, op.block]
            size = op.heads.size(*kept) * (op.k if op.kind is OpKind.SCORE else op.n).size(*kept)
            window = 0 if op.causal else op.window
            path = attention_path(ours, op)
            by_block[path] = by_block.get(path, 0) + 2 * size * attended(rows[op.rows], spans[op.span], window=window)
    for path, expected in by_block.items():
        assert flops[path].get("bmm", 0) == expected, path
        n_compared += 1
    return n_compared


def attention_path(ours, op):
    leaf = op.name.split(".", 2)[2].rpartition(".")[0]
    block = next(m for m in ours.modules if m.component == op.component and m.block == op.block)
    return block.path.removesuffix(block.leaf) + leaf


TEXT_SAMPLES = [
    n
    for n, c in SAMPLES.items()
    if "vision_config" not in c and "audio_config" not in c and c["model_type"] != "whisper"
]


@pytest.mark.validates("models", "operations of prefill and decode", "the graph that transformers runs", "equal")
@pytest.mark.parametrize("name", TEXT_SAMPLES)
def test_prefill_and_decode_do_the_work_of_the_graph(name):
    ours, model = Model.from_config(SAMPLES[name], name), instantiate(SAMPLES[name], "cpu").eval()
    tokens = torch.randint(1, 400, (1, PROMPT))
    out, flops = counted(model, lambda: model(input_ids=tokens, use_cache=True, logits_to_keep=1))
    rows, spans = {"token": PROMPT, "last": 1}, {"context": PROMPT}
    linear = [op for op in ours.graph("prefill").ops if op.kind is OpKind.LINEAR]
    experts = [op for op in linear if ".experts." in op.name]
    assert check_layers(ours, "prefill", rows, flops) == len(linear) - len(experts)
    check_experts(ours, "prefill", experts, rows, flops)
    assert check_attention(ours, "prefill", rows, spans, flops, within="decoder") == len(ours.blocks)

    step = torch.randint(1, 400, (1, STEPS))
    cache = out.past_key_values
    _, flops = counted(model, lambda: model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1))
    rows, spans = {"token": STEPS, "last": 1}, {"context": PROMPT + STEPS}
    if "kv_lora_rank" in SAMPLES[name]:
        return  # transformers expands the latents in decode; the graph absorbs the expansion, as serving engines do
    assert check_layers(ours, "decode", rows, flops) == len(linear) - len(experts)
    assert check_attention(ours, "decode", rows, spans, flops, within="decoder") == len(ours.blocks)


def check_experts(ours, phase, ops, rows, flops):
    """Compare the routed experts of each block; their weights lie in one module."""
    by_module = {}
    for op in ops:
        kept = ours.units[op.component, op.block]
        path = op.module.rpartition(".")[0]
        by_module[path] = by_module.get(path, 0) + 2 * rows[op.rows] * op.n_active * op.n_weights(*kept)
    for path, expected in by_module.items():
        if ours.model_type.startswith("llama4"):
            # transformers runs every expert on every token and masks; the graph counts those a token is sent to.
            expected *= ours.module(f"{path}.down_proj").n_copies // ours.module(f"{path}.down_proj").n_active
        assert sum(n for op, n in flops[path].items() if op in ("mm", "bmm", "grouped_mm")) == expected, path


def _image(config, model, layout):
    """Run the encoder and the projector of a sample on as many tiles as the layout says."""
    kind, n = config["model_type"], layout.n_sequences
    if kind.startswith("qwen"):
        vision = config["vision_config"]
        features = 3 * 2 * vision["patch_size"] ** 2
        grid = [[1, layout.height_px // vision["patch_size"], layout.width_px // vision["patch_size"]]]
        return lambda: model.model.get_image_features(
            pixel_values=torch.rand(layout.cuts, features), image_grid_thw=torch.tensor(grid)
        )
    side = config["vision_config"]["image_size"]
    side = side[0] if isinstance(side, list) else side
    tiles = torch.rand(n, 3, side, side)
    if kind == "llama4":
        return lambda: model.multi_modal_projector(model.vision_model(tiles).last_hidden_state)
    if kind == "mllama":
        return lambda: _states(config, model, layout, side)
    if kind == "llava_next":
        size = torch.tensor([[layout.height_px, layout.width_px]])
        return lambda: model.model.get_image_features(pixel_values=tiles[None], image_sizes=size)
    if kind in ("idefics3", "smolvlm"):
        return lambda: model.model.get_image_features(pixel_values=tiles[None])
    return lambda: model.model.get_image_features(pixel_values=tiles)


def _states(config, model, layout, side):
    tiles = layout.cuts // (side // config["vision_config"]["patch_size"]) ** 2
    vision = model.model.vision_model
    vision.max_num_tiles = tiles
    out = vision(
        torch.rand(1, 1, tiles, 3, side, side),
        torch.ones(1, 1, dtype=torch.long),
        torch.ones(1, 1, tiles, dtype=torch.long),
    )
    return model.model.multi_modal_projector(out.last_hidden_state)


IMAGE_SAMPLES = [n for n, c in SAMPLES.items() if "vision_config" in c]


@pytest.mark.parametrize("name", IMAGE_SAMPLES)
def test_encoders_do_the_work_of_the_graph(name):
    config = SAMPLES[name]
    ours, model = Model.from_config(config, name), instantiate(config, "cpu").eval()
    # Multiples of Qwen2.5-VL's window; elsewhere anything. Llama-3.2 Vision's tile tables need all tiles in use.
    layout = ours.visual_layout(56, 168) if config["model_type"] == "mllama" else ours.visual_layout(112, 168)
    _, flops = counted(model, _image(config, model, layout))
    rows, spans = layout.rows(), {"patch": layout.patches}
    n_linear = sum(op.kind is OpKind.LINEAR for op in ours.graph("encode").ops)
    bare = sum("mm_input_projection_weight" in op.name for op in ours.graph("encode").ops)
    assert check_layers(ours, "encode", rows, flops) == n_linear - bare
    used = sum(b.used and b.component == "vision" for b in ours.blocks)
    rows = {**rows, "patch": layout.patches}  # tiles attend to themselves: one sequence at a time
    for op_flops in flops.values():
        op_flops["bmm"] = op_flops.get("bmm", 0) // layout.n_sequences
    assert check_attention(ours, "encode", rows, spans, flops, within="vision") == used


@pytest.mark.parametrize("name", ["whisper, decoder unlike encoder", "qwen2_audio"])
def test_audio_encoders_do_the_work_of_the_graph(name):
    config = SAMPLES[name]
    ours, model = Model.from_config(config, name), instantiate(config, "cpu").eval()
    layout = ours.audio_layout(0.9)
    sound = torch.rand(1, 20, layout.mel)
    if config["model_type"] == "whisper":
        run = lambda: model.model.encoder(sound)  # noqa: E731
    else:
        run = lambda: model.model.multi_modal_projector(model.model.audio_tower(sound).last_hidden_state)  # noqa: E731
    _, flops = counted(model, run)
    rows, spans = layout.rows(), {"frame": layout.frames}
    assert check_layers(ours, "encode", rows, flops) == sum(op.kind is OpKind.LINEAR for op in ours.graph("encode").ops)
    assert check_attention(ours, "encode", rows, spans, flops, within="audio") == 3


def test_cross_attention_computes_keys_and_values_once():
    config = SAMPLES["whisper, decoder unlike encoder"]
    ours, model = Model.from_config(config, "whisper"), instantiate(config, "cpu").eval()
    states = (torch.rand(1, 50, 60),)
    decoder = model.model.decoder
    tokens = torch.randint(1, 400, (1, 7))
    out, flops = counted(model, lambda: model(decoder_input_ids=tokens, encoder_outputs=states, use_cache=True))
    rows, spans = {"token": 7, "last": 7, "state": 50}, {"context": 7, "state": 50}
    n_linear = sum(op.kind is OpKind.LINEAR for op in ours.graph("prefill").ops)
    assert check_layers(ours, "prefill", rows, flops) == n_linear
    assert check_attention(ours, "prefill", rows, spans, flops, within="decoder") == 2 * len(decoder.layers)
    cache = out.past_key_values
    step = tokens[:, :1]
    _, flops = counted(model, lambda: model(decoder_input_ids=step, encoder_outputs=states, past_key_values=cache))
    rows, spans = {"token": 1, "last": 1, "state": 50}, {"context": 8, "state": 50}
    n_decode = sum(op.kind is OpKind.LINEAR for op in ours.graph("decode").ops)
    assert n_decode == n_linear - 2 * len(decoder.layers)
    assert check_layers(ours, "decode", rows, flops) == n_decode
    assert check_attention(ours, "decode", rows, spans, flops, within="decoder") == 2 * len(decoder.layers)
