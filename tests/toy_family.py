"""A family that only the tests know: a latent state, decoded after the loop, a class label, v prediction, cosine betas.

Nothing in engine, embed or kernels was written for it; it is a manifest and six small ONNX graphs:

    encode   image_encoder(image) -> style
    before   label_encoder(label) -> context; modulation(context, style) -> scale, shift
    rows     timestep_table(timesteps)
    step     denoiser(x, scale, shift, row) -> v
    after    decoder(x) -> decoded

State 4 x 6 x 8, image 3 x 12 x 16. A variant has a denoiser that learned the variance too: its second output, `range`.
Others encode the image to the state, state_encoder(image) -> x, in place of the style or beside it; make the style of
pictures that they take, photo_encoder(photo, mask, level) -> style, level that of noise on the photo; or have a text in
place of the label, token_encoder(tokens) -> context.
`Reference` is the same in float64 numpy, chain included, written from the papers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.bundle.maps import free_dimension
from engine.bundle.writer import write_bundle

STATE, IMAGE, STYLE, CLASSES, CONTEXT, ROW = (4, 6, 8), (3, 12, 16), 5, 10, 3, 6
TOKENS, LENGTH = 24, 7  # of a text
TEXT = {
    "input": "tokens", "file": "vocab.txt", "kind": "wordpiece", "lowercase": True, "begin": "[CLS]", "end": "[SEP]",
    "pad": "[PAD]", "unknown": "[UNK]",
}  # fmt: skip
SEGMENTATION: dict[str, Any] = {
    "name": "segmentation", "dtype": "int64", "shape": ["batch", *IMAGE[1:]], "range": [0, 3], "draw": None, "picture": None,
    "null": None,
}  # fmt: skip
T = 1000
OPSET, IR_VERSION = 21, 10
F64 = np.ndarray[Any, np.dtype[np.float64]]


def weights() -> dict[str, np.ndarray]:
    """Every weight of the family by name, float32."""
    rng = np.random.default_rng(11)
    shapes = {
        "E": (int(np.prod(IMAGE)), STYLE),
        "labels": (CLASSES + 1, CONTEXT),
        "A": (CONTEXT + STYLE, STATE[0]),
        "B": (CONTEXT + STYLE, STATE[0]),
        "D": (STATE[0], IMAGE[0], 2, 2),
        "S": (STATE[0], IMAGE[0], 2, 2),
    }
    scales = {"E": 0.05, "labels": 0.5, "A": 0.3, "B": 0.2, "D": 0.4, "S": 0.4}
    made = {name: (scales[name] * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    return made | {"ramp": np.arange(1, ROW + 1, dtype=np.float32) / 6000}


BACKENDS = ("onnxruntime", "openvino")


def build_family(
    path: str | Path,
    backends: Sequence[str] = BACKENDS,
    sampler: bytes | None = None,
    *,
    style_null: bool = True,
    learned: bool = False,
    encodes: Sequence[str] = ("image_encoder",),
    draws: bool = True,
    vocabulary: bytes | None = None,
    pictures: Sequence[str] = (),
    level: str | None = None,
    quantizes: bool = False,
    multiple: int | None = None,
    segments: bool = False,
) -> Path:
    """Write the bundle and return its folder.

    sampler: its whole-sampler graph, where one was composed. style_null: without, only the label has a null, and what is
    made of both has one that is each sample's own. learned: of variance "learned_range". encodes: the calls of `encode`.
    draws: whether the style is drawn. vocabulary: with a text in place of the label. pictures: photo, or photo and mask,
    the inputs that the style is made of then. level: "int64" or "float32", of the photo's noise level, which is told then.
    quantizes: with a codebook, for `quantize_denoised` and before the decoder.
    multiple: of a state of any size, in these steps. segments: with an input of a label for each pixel of the image.
    """
    models = graphs(learned)
    if "image_encoder" not in encodes:
        del models["image_encoder"]
    if vocabulary is not None:
        del models["label_encoder"]
        models["token_encoder"] = token_encoder()
    if quantizes:
        models["codebook"] = codebook()
    if "state_encoder" in encodes:
        models["state_encoder"] = state_encoder()
    if pictures:
        models["photo_encoder"] = photo_encoder(pictures, level)
    if segments:
        models["segment_encoder"] = segment_encoder()
        add_level(models["denoiser"].graph)
    files: dict[str, bytes | Path] = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    raw = manifest(models, backends)
    raw["pipeline"]["encode"] = [encode_call(name) for name in encodes]
    raw["pipeline"]["maps"] = None if "image_encoder" in encodes else []
    if segments:
        raw["inputs"].append(SEGMENTATION)
        made = {"graph": "segment_encoder", "inputs": {"segmentation": "segmentation"}, "outputs": {"level": "level"}}
        raw["pipeline"]["before"].append(made)
        raw["pipeline"]["step"]["inputs"]["segments"] = "level"
        raw["pipeline"]["maps"] = ["segmentation"]
    if multiple is not None:
        raw["pipeline"]["multiple"] = multiple
        files |= {f"{name}.onnx": loosened(model).SerializeToString() for name, model in models.items()}
    if vocabulary is not None:
        tokens = {"name": "tokens", "shape": ["batch", LENGTH], "range": [0, TOKENS - 1], "null": [0] * LENGTH}
        raw["inputs"][0] |= tokens
        raw["pipeline"]["before"][0] |= {"graph": "token_encoder", "inputs": {"tokens": "tokens"}}
        raw["text"], files["vocab.txt"] = dict(TEXT), vocabulary
    if pictures:
        shapes = {"photo": (["batch", *IMAGE], [-1, 1], "image"), "mask": (["batch", 1, *IMAGE[1:]], [0, 1], "mask")}
        raw["inputs"][1:] = [
            {"name": name, "dtype": "float32", "shape": shapes[name][0], "range": shapes[name][1], "draw": None,
             "picture": shapes[name][2], "null": None} for name in pictures
        ]  # fmt: skip
        fed = {name: name for name in (*pictures, *(["level"] if level else []))}
        made = {"graph": "photo_encoder", "inputs": fed, "outputs": {"style": "style"}}
        raw["pipeline"]["before"].insert(0, made)
    if level is not None:
        raw["inputs"].append(SEGMENTATION | {"name": "level", "dtype": level, "shape": ["batch"], "range": [0, T - 1]})
        raw["augmentation"] = {"input": "level"}
    if quantizes:
        call = {"graph": "codebook", "inputs": {"latent": "x0"}, "outputs": {"codes": "x0"}}
        raw["pipeline"]["quantize"] = call
        raw["pipeline"]["after"].insert(0, call | {"inputs": {"latent": "x"}, "outputs": {"codes": "codes"}})
        raw["pipeline"]["after"][1]["inputs"] = {"x": "codes"}
    if not draws:
        raw["inputs"][1]["draw"] = None
    if not style_null:
        raw["inputs"][1]["null"] = None
    if learned:
        raw["variance"], raw["pipeline"]["step"]["outputs"]["range"] = "learned_range", "variance"
    if sampler is not None:
        files["sampler.onnx"] = sampler
        raw["graphs"]["sampler"] = entry("sampler", onnx.load_from_string(sampler))
    write_bundle(path, raw, files)
    return Path(path)


def loosened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a free height and width, as a build leaves them free in the files of graphs that run in any size."""
    free = {STATE[1:]: 1, IMAGE[1:]: 2}
    for info in (*model.graph.input, *model.graph.output):
        dims = info.type.tensor_type.shape.dim
        factor = free.get(tuple(dim.dim_value for dim in dims)[-2:])
        for axis in (0, 1) if factor is not None else ():
            dims[len(dims) - 2 + axis].dim_param = free_dimension(factor or 1, axis)
    return model


def encode_call(name: str) -> dict[str, Any]:
    """The call of `encode` of an encoder."""
    made = "style" if name == "image_encoder" else "x"
    return {"graph": name, "inputs": {"image": "image"}, "outputs": {made: made}}


def manifest(models: dict[str, onnx.ModelProto], backends: Sequence[str]) -> dict[str, Any]:
    """The manifest, without the sizes and hashes that `write_bundle` fills in."""
    channels, height, width = STATE
    return {
        "format": "diffusevae-bundle",
        "format_version": 3,
        "name": "latents",
        "family": "toyfamily",
        "architecture": {"kind": "toy"},
        "inputs": [
            {"name": "label", "dtype": "int64", "shape": ["batch"], "range": [0, CLASSES], "draw": None,
             "picture": None, "null": CLASSES},
            {
                "name": "style", "dtype": "float32", "shape": ["batch", STYLE], "range": "unbounded", "draw": "normal",
                "picture": None, "null": [0.1] * STYLE,
            },
        ],
        "pipeline": {
            "encode": [encode_call("image_encoder")],
            "before": [
                {"graph": "label_encoder", "inputs": {"label": "label"}, "outputs": {"context": "context"}},
                {
                    "graph": "modulation",
                    "inputs": {"context": "context", "style": "style"},
                    "outputs": {"scale": "scale", "shift": "shift"},
                },
            ],
            "rows": {"graph": "timestep_table", "inputs": {"timesteps": "timesteps"}, "outputs": {"rows": "rows"}},
            "step": {
                "graph": "denoiser",
                "inputs": {"x": "x", "scale": "scale", "shift": "shift", "row": "rows"},
                "outputs": {"v": "e"},
            },
            "quantize": None,
            "after": [{"graph": "decoder", "inputs": {"x": "x"}, "outputs": {"image": "decoded"}}],
            "nulls": {},
            "state": {"channels": channels, "height": height, "width": width, "clip": None, "centre": None, "start": None},
            "image": "decoded",
            "maps": None,
            "multiple": None,
        },
        "schedule": {"recipe": "cosine", "T": T, "s": 0.008, "max_beta": 0.999},
        "prediction": "v",
        "variance": "fixedsmall",
        "defaults": {
            "steps": 6, "timesteps": None, "spacing": "trailing", "rho": 7.0, "method": "ddim", "eta": 0.0, "t_start": None,
            "temperature": 1.0, "noise_scale": 1.0, "eps_scale": 1.0, "guidance": 0.0,
        },
        "source": {"file": "toy.ckpt", "sha256": "0" * 64, "weights": "ema", "other_file": None, "other_sha256": None},
        "backends": list(backends),
        "graphs": {name: entry(name, model) for name, model in models.items()},
        "fitted": None,
        "refine": None,
        "prior": None,
        "directions": None,
        "text": None,
        "engines": [],
        "built_with": {"onnx": onnx.__version__},
    }  # fmt: skip


def entry(name: str, model: onnx.ModelProto) -> dict[str, Any]:
    """The manifest's entry of one model."""
    ranges: dict[str, Any] = {"timesteps": [0, T - 1], "label": [0, CLASSES], "image": [-1, 1], "tokens": [0, TOKENS - 1]}
    kinds = {TensorProto.INT64: "int64", TensorProto.UINT8: "uint8", TensorProto.FLOAT: "float32"}

    def tensors(infos: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": info.name,
                "dtype": kinds[info.type.tensor_type.elem_type],
                "shape": [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim],
                "range": ranges.get(info.name, "unbounded"),
            }
            for info in infos
        ]

    return {
        "file": f"{name}.onnx", "precision": "f32", "opset": OPSET, "compute": {}, "weights": None,
        "inputs": tensors(model.graph.input), "outputs": tensors(model.graph.output),
        "parity": {
            "reference": "none (toy)", "max_relative_error": 0.0, "batches": [1, 2], "runtimes": {"onnxruntime": 0.0},
        },
    }  # fmt: skip


def graphs(learned: bool = False) -> dict[str, onnx.ModelProto]:
    """The six graphs by name; with `learned` the denoiser has its second output."""
    node, w = helper.make_node, weights()
    state, image = ["batch", *STATE], ["batch", *IMAGE]
    flat = {"flat": np.array([0, -1])}
    return {
        "image_encoder": _model(
            [node("Reshape", ["image", "flat"], ["pixels"]), node("MatMul", ["pixels", "E"], ["style"])],
            {"image": image}, {"style": ["batch", STYLE]}, {"E": w["E"]} | flat,
        ),
        "label_encoder": _model(
            [node("Gather", ["labels", "label"], ["context"])],
            {"label": ["batch"]}, {"context": ["batch", CONTEXT]}, {"labels": w["labels"]},
        ),
        "modulation": _model(
            [
                node("Concat", ["context", "style"], ["both"], axis=1),
                node("MatMul", ["both", "A"], ["scale"]),
                node("MatMul", ["both", "B"], ["shift"]),
            ],
            {"context": ["batch", CONTEXT], "style": ["batch", STYLE]},
            {"scale": ["batch", STATE[0]], "shift": ["batch", STATE[0]]},
            {"A": w["A"], "B": w["B"]},
        ),
        "timestep_table": _model(
            [
                node("Cast", ["timesteps"], ["t"], to=TensorProto.FLOAT),
                node("Unsqueeze", ["t", "one"], ["t_column"]),
                node("Mul", ["t_column", "ramp"], ["rows"]),
            ],
            {"timesteps": ["steps"]}, {"rows": ["steps", ROW]}, {"ramp": w["ramp"], "one": np.array([1])},
        ),
        "denoiser": _model(
            [
                node("Reshape", ["scale", "column"], ["scale_4d"]),
                node("Reshape", ["shift", "column"], ["shift_4d"]),
                node("ReduceMean", ["row", "axis"], ["mean"], keepdims=1),
                node("Reshape", ["mean", "ones"], ["offset"]),
                node("Tanh", ["x"], ["bent"]),
                node("Mul", ["bent", "scale_4d"], ["scaled"]),
                node("Mul", ["x", "tenth"], ["part"]),
                node("Add", ["part", "scaled"], ["sum"]),
                node("Add", ["shift_4d", "offset"], ["level"]),
                node("Add", ["sum", "level"], ["v"]),
                *([node("Add", ["bent", "scale_4d"], ["range"])] if learned else []),
            ],
            {"x": state, "scale": ["batch", STATE[0]], "shift": ["batch", STATE[0]], "row": [1, ROW]},
            {"v": state} | ({"range": state} if learned else {}),
            {
                "column": np.array([0, 0, 1, 1]), "axis": np.array([1]), "ones": np.array([1, 1, 1, 1]),
                "tenth": np.float32(0.1),
            },
        ),
        "decoder": _model(
            [node("ConvTranspose", ["x", "D"], ["wide"], strides=[2, 2]), node("Tanh", ["wide"], ["image"])],
            {"x": state}, {"image": image}, {"D": w["D"]},
        ),
    }  # fmt: skip


def token_encoder() -> onnx.ModelProto:
    """tokens -> context, the mean of what stands for each of them."""
    node = helper.make_node
    return _model(
        [node("Gather", ["table", "tokens"], ["each"]), node("ReduceMean", ["each", "axis"], ["context"], keepdims=0)],
        {"tokens": ["batch", LENGTH]}, {"context": ["batch", CONTEXT]},
        {"table": np.sin(np.arange(TOKENS * CONTEXT, dtype=np.float32)).reshape(TOKENS, -1), "axis": np.array([1])},
    )  # fmt: skip


def state_encoder() -> onnx.ModelProto:
    """The state of an image."""
    nodes = [helper.make_node("Conv", ["image", "S"], ["x"], strides=[2, 2])]
    return _model(nodes, {"image": ["batch", *IMAGE]}, {"x": ["batch", *STATE]}, {"S": weights()["S"]})


def codebook() -> onnx.ModelProto:
    """latent -> tanh(latent): a smooth function, since near a border of codes float32 and float64 could part."""
    nodes = [helper.make_node("Tanh", ["latent"], ["codes"])]
    return _model(nodes, {"latent": ["batch", *STATE]}, {"codes": ["batch", *STATE]}, {})


def segment_encoder() -> onnx.ModelProto:
    """segmentation -> level, the mean of what stands for the labels of the image's pixels, for each of the state's."""
    node = helper.make_node
    nodes = [
        node("Gather", ["levels", "segmentation"], ["each"]), node("Unsqueeze", ["each", "one"], ["plane"]),
        node("AveragePool", ["plane"], ["level"], kernel_shape=[2, 2], strides=[2, 2]),
    ]  # fmt: skip
    constants = {"levels": np.array([-0.4, 0.1, 0.3, 0.9], np.float32), "one": np.array([1])}
    return _model(nodes, {"segmentation": ["batch", *IMAGE[1:]]}, {"level": ["batch", 1, *STATE[1:]]}, constants)


def add_level(graph: onnx.GraphProto) -> None:
    """Let the denoiser's answer be higher by a further input, `segments`."""
    for node in graph.node:
        node.output[:] = ["without" if name == "v" else name for name in node.output]
    graph.node.append(helper.make_node("Add", ["without", "segments"], ["v"]))
    graph.input.append(helper.make_tensor_value_info("segments", TensorProto.FLOAT, ["batch", 1, *STATE[1:]]))


def photo_encoder(pictures: Sequence[str], level: str | None = None) -> onnx.ModelProto:
    """The style of a photo as the image encoder has it; where there is a mask, of what lies outside of it; and with a noise
    level, higher by a thousandth of it."""
    node = helper.make_node
    nodes = [node("Sub", ["whole", "mask"], ["keep"]), node("Mul", ["photo", "keep"], ["seen"])]
    nodes = nodes if "mask" in pictures else [node("Identity", ["photo"], ["seen"])]
    nodes += [node("Reshape", ["seen", "flat"], ["pixels"]), node("MatMul", ["pixels", "E"], ["style"])]
    shapes: dict[str, list[Any]] = {"photo": ["batch", *IMAGE], "mask": ["batch", 1, *IMAGE[1:]]}
    constants = {"E": weights()["E"], "flat": np.array([0, -1])} | ({"whole": np.float32(1)} if "mask" in pictures else {})
    named = {name: shapes[name] for name in pictures}
    if level is not None:
        nodes[-1].output[:] = ["clean"]
        nodes += [
            node("Cast", ["level"], ["t"], to=TensorProto.FLOAT), node("Reshape", ["t", "column"], ["t_column"]),
            node("Mul", ["t_column", "thousandth"], ["higher"]), node("Add", ["clean", "higher"], ["style"]),
        ]  # fmt: skip
        constants |= {"column": np.array([-1, 1]), "thousandth": np.float32(1e-3)}
        named["level"] = ["batch"]
    return _model(nodes, named, {"style": ["batch", STYLE]}, constants, whole=("level",) if level == "int64" else ())


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    constants: dict[str, Any],
    *,
    whole: Sequence[str] = (),
) -> onnx.ModelProto:
    def infos(named: dict[str, list[Any]]) -> list[onnx.ValueInfoProto]:
        integers = ("label", "timesteps", "tokens", "segmentation", *whole)
        return [
            helper.make_tensor_value_info(name, TensorProto.INT64 if name in integers else TensorProto.FLOAT, shape)
            for name, shape in named.items()
        ]

    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "toy", infos(inputs), infos(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


class Reference:
    """The family in float64 numpy: each graph as a method, and `sample`, DDIM with eta and guidance over v prediction."""

    def __init__(self) -> None:
        self.w = {name: array.astype(np.float64) for name, array in weights().items()}
        # Nichol & Dhariwal 2021, eq. 17: alpha_bar_t = f(t) / f(0), each beta limited.
        t = np.arange(T + 1, dtype=np.float64)
        f = np.cos((t / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
        self.alpha_bar = np.cumprod(1 - betas)

    def encode(self, images: np.ndarray) -> F64:
        """The style of images [N, 3, 12, 16] in [-1, 1]."""
        return images.reshape(len(images), -1).astype(np.float64) @ self.w["E"]

    def encode_state(self, images: np.ndarray) -> F64:
        """The state of images [N, 3, 12, 16] in [-1, 1]: a convolution whose windows do not overlap."""
        n, channels, height, width = images.shape
        windows = images.astype(np.float64).reshape(n, channels, height // 2, 2, width // 2, 2)
        return np.asarray(np.einsum("ncjaib,ocab->noji", windows, self.w["S"]))

    def modulation(self, label: np.ndarray, style: np.ndarray) -> tuple[F64, F64]:
        """scale and shift, [N, 4] each."""
        both = np.concatenate([self.w["labels"][label], style.astype(np.float64)], axis=1)
        return both @ self.w["A"], both @ self.w["B"]

    def denoise(self, x: F64, scale: F64, shift: F64, t: int) -> F64:
        """v at timestep t."""
        level = shift[:, :, None, None] + np.mean(t * self.w["ramp"])
        return 0.1 * x + scale[:, :, None, None] * np.tanh(x) + level

    def learned_variance(self, x: F64, scale: F64, now: float, then: float) -> F64:
        """Nichol & Dhariwal 2021, eq. 15: between beta~ and beta, in logarithms, by the fraction that the network says."""
        fraction = (np.tanh(x) + scale[:, :, None, None] + 1) / 2
        beta = 1 - now / then
        variance: F64 = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(beta * (1 - then) / (1 - now)))
        return variance

    def decode(self, x: F64) -> F64:
        """Images [N, 3, 12, 16] in [-1, 1]: a transposed convolution whose windows do not overlap."""
        wide = np.einsum("ncij,coab->noiajb", x, self.w["D"])
        n, channels, height, _, width, _ = wide.shape
        return np.tanh(wide.reshape(n, channels, 2 * height, 2 * width))

    def sample(
        self,
        timesteps: Sequence[int],
        x_T: np.ndarray,
        label: np.ndarray,
        style: np.ndarray,
        *,
        guidance: float = 0.0,
        eta: float = 0.0,
        noise: np.ndarray | None = None,
        style_null: bool = True,
        learned: bool = False,
        interval: tuple[int, int] = (0, T),
        quantized: bool = False,
    ) -> F64:
        """The state after the last step. timesteps fall; noise [S, N, ...] is needed where eta is not 0.

        learned: DDPM's steps instead, with the noise that the network says: that of lane 0, the inputs'. interval: the
        timesteps with guidance. quantized: x0, and not eps, goes through the codebook.
        """
        with_inputs = self.modulation(label, style)
        nulls = self.modulation(np.full_like(label, CLASSES), np.full_like(style, 0.1) if style_null else style)
        x = x_T.astype(np.float64)
        for step, t in enumerate(timesteps):
            w = guidance if interval[0] <= t <= interval[1] else 0.0
            v = (1 + w) * self.denoise(x, *with_inputs, t) - w * self.denoise(x, *nulls, t)
            now = self.alpha_bar[t]
            then = self.alpha_bar[timesteps[step + 1]] if step + 1 < len(timesteps) else 1.0
            x0 = np.sqrt(now) * x - np.sqrt(1 - now) * v
            eps = np.sqrt(1 - now) * x + np.sqrt(now) * v
            x0 = np.tanh(x0) if quantized else x0
            if learned:
                assert noise is not None
                beta = 1 - now / then
                mean = (np.sqrt(then) * beta * x0 + np.sqrt(1 - beta) * (1 - then) * x) / (1 - now)
                with_noise = step + 1 < len(timesteps)
                x = mean + (np.sqrt(self.learned_variance(x, with_inputs[0], now, then)) * noise[step] if with_noise else 0)
                continue
            sigma = eta * np.sqrt((1 - then) / (1 - now)) * np.sqrt(1 - now / then)
            x = np.sqrt(then) * x0 + np.sqrt(1 - then - sigma**2) * eps
            if sigma > 0:
                assert noise is not None
                x = x + sigma * noise[step]
        return x

    def pixels(self, x: F64) -> np.ndarray:
        """uint8 [N, 12, 16, 3] of a state."""
        unit = (self.decode(x) + 1) / 2
        return np.clip(np.rint(255 * unit), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
