"""Networks of Hugging Face's diffusers as networks here.

UNet2DConditionModel, such as Stable Diffusion's (arXiv 2112.10752), and PixArtTransformer2DModel, of PixArt-alpha
(arXiv 2310.00426) and PixArt-Sigma (arXiv 2403.04692). The latter also predicts a variance, which is not used.

Such a model sees a_n x_0 + s_n z, with a_n^2 + s_n^2 = 1 and x_0 of deviation 1, at the timesteps n = 0, ..., N - 1.
In units of sigma_data this is u = c_in x, with x = x_0 + sigma z and sigma = s_n/a_n: the input of every network here.
Between the timesteps n is linear in ln sigma, and constant beyond the first and the last. With D of
diffusion/precond.py

    epsilon:       D = x - sigma eps,   so F = sigma u - sqrt(1 + sigma^2) eps;
    v_prediction:  D = a^2 x - s v,     so F = -v (arXiv 2202.00512, App. D).

These are the only networks that a package from elsewhere computes; it is imported where one is built.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmcore.config import ConfigError, require
from cmcore.diffusion.inputs import Input
from cmcore.diffusion.precond import Condition, Labels, NoiseCoordinate, as_condition
from cmcore.diffusion.words import Text, Words
from cmcore.dual import Dual, Value, half_of
from cmcore.errors import reason
from cmcore.layers.embeddings import InputEmbedding, ZeroEmbedding, condition_vectors
from cmcore.layers.linear import linear
from cmcore.layers.text import TextTable
from cmcore.layers.unet import check_images
from cmcore.layers.words import WordEncoder
from cmcore.tensors import expand_like
from cmcore.torchvision_ops import import_torchvision

NEEDS = "diffusers"  # the package, of the extra `latents`
BY_DATA = ("sample_size", "in_channels", "out_channels")  # arguments that the data decide
# Further inputs of the library's U-Net, which are None here: classes and numbers are embedded as in other networks.
WITHOUT = (
    "class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type",
    "time_cond_proj_dim",
)  # fmt: skip
PIXELS = 8  # along the side of an image for each along that of its latent, in every published PixArt
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


class Model(NamedTuple):
    """One of the library's networks."""

    library: str  # its class
    name: str  # begins the names of its tensors here, and is that of its folder in a pipeline
    width: str  # the argument that holds the width of the vectors that it attends to
    default_width: int | None
    outputs: int  # numbers predicted for each of the image, of which the first belongs to the noise


MODELS = {
    "unet": Model("UNet2DConditionModel", "unet", "cross_attention_dim", 1280, 1),
    "pixart": Model("PixArtTransformer2DModel", "transformer", "caption_channels", None, 2),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The arguments of the library's network, and the meaning of its timesteps and its output.

    By default the latter are Stable Diffusion's. `cmlab import-weights` prints them for a folder of diffusers.
    """

    c_noise: NoiseCoordinate = "log"
    sigma_data: float = 0.5  # of the preconditioning
    model: Literal["unet", "pixart"] = "unet"
    arguments: dict[str, Any] = field(default_factory=dict)  # of config.json, where they are not the library's defaults
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    timesteps: int = 1000  # N
    beta_schedule: BetaSchedule = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        require(self.sigma_data > 0, "sigma_data", "a positive number", self.sigma_data)
        require(self.timesteps >= 2, "timesteps", "at least 2", self.timesteps)
        require(0 < self.beta_start < 1, "beta_start", "a number between 0 and 1", self.beta_start)
        require(self.beta_start <= self.beta_end < 1, "beta_end", "a number from beta_start up to 1", self.beta_end)
        for key in (key for key in BY_DATA if key in self.arguments):
            require(False, f"arguments.{key}", "nothing, as the data decide it", self.arguments[key])
        for key in WITHOUT:
            require(self.arguments.get(key) is None, f"arguments.{key}", "null", self.arguments.get(key))
        known = MODELS[self.model]
        width = self.arguments.get(known.width, known.default_width)
        require(isinstance(width, int), f"arguments.{known.width}", "one number, the width of encoded captions", width)

    @property
    def log_sigmas(self) -> Tensor:
        """ln(s_n/a_n) of all timesteps, (N,) float64, for data of deviation 1."""
        beta = _betas(self.beta_schedule, self.timesteps, self.beta_start, self.beta_end)
        squared = torch.cumprod(1 - beta, 0)  # a_n^2
        return 0.5 * ((1 - squared) / squared).log()


def _betas(schedule: BetaSchedule, count: int, start: float, end: float) -> Tensor:
    """The variances that are added from one timestep to the next: (N,) float64."""
    if schedule == "linear":  # arXiv 2006.11239
        return torch.linspace(start, end, count, dtype=torch.float64)
    if schedule == "scaled_linear":  # of latent diffusion, arXiv 2112.10752
        return torch.linspace(math.sqrt(start), math.sqrt(end), count, dtype=torch.float64) ** 2
    n = torch.arange(count + 1, dtype=torch.float64) / count  # the cosine schedule, arXiv 2102.09672, Eq. 17
    squared = ((n + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - squared[1:] / squared[:-1]).clamp(max=0.999)


class Extra(nn.Module):
    """(c_noise (B,), labels (B,), a Condition or None) -> what is added to the features of the timestep (B, width).

    Labels and further inputs, all zero at first: so a student that has them starts as a teacher without.
    """

    def __init__(self, width: int, classes: int, inputs: Sequence[Input]) -> None:
        super().__init__()
        self.classes, self.width = classes, width
        self.label = linear(classes, width, gain=0.0, bias=False) if classes else None
        self.inputs = InputEmbedding(inputs, lambda: ZeroEmbedding(width, width))

    def forward(self, c_noise: Tensor, labels: Labels) -> Tensor:
        hot, _ = condition_vectors(c_noise, labels, classes=self.classes)
        e: Any = c_noise.new_zeros(len(c_noise), self.width)
        if self.label is not None and hot is not None:
            e = e + self.label(hot * math.sqrt(self.classes))
        return self.inputs(e, c_noise, labels)


class DiffusersNet(nn.Module):
    """F(x (B, C, H, W), c_noise (B,), labels (B,), a Condition or None) -> (B, C, H, W).

    With `words`, labels are rows of words, or numbers of encoded captions, to whose vectors the library's network
    attends; without, it attends to one vector of zeros. PixArt leaves out the zeros that follow the last token of T5,
    as the library's pipeline does. Derivatives along a direction are those of PyTorch's forward mode, which keeps more
    in memory than those of other networks here.
    """

    log_sigmas: Tensor

    def __init__(
        self, config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = (),
        words: Words | Text | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.channels, self.resolution = config, channels, resolution
        self.model = MODELS[config.model]
        net = _library_net(config, channels, resolution)
        self.add_module(self.model.name, net)
        if config.model == "unet":
            embedding = net.time_embedding
            embedding.cond_proj = nn.Identity()  # adds what `Extra` makes
        else:  # which takes nothing else: `Extra` adds to the features of the timestep before it sees them
            embedding = net.adaln_single.emb.timestep_embedder
            self.features, net.adaln_single.emb.time_proj = net.adaln_single.emb.time_proj, nn.Identity()
        self.embedding = Extra(embedding.linear_1.in_features, classes, inputs)
        self.width = net.config[self.model.width]
        self.words = self._reader(words) if words else None
        self.register_buffer("log_sigmas", config.log_sigmas.to(torch.get_default_dtype()), persistent=False)

    @property
    def library(self) -> Any:
        """The library's network."""
        return self.get_submodule(self.model.name)

    def forward(self, x: Value, c_noise: Value, labels: Labels = None) -> Value:
        check_images(x, self.channels, self.resolution)
        given = as_condition(labels)
        if not any(isinstance(value, Dual) for value in (x, c_noise, *given.inputs.values())):
            return self._value(x, c_noise, given)  # pyright: ignore[reportArgumentType]
        # The one kernel of attention that has a forward-mode derivative.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            inputs = {name: _forward_mode(value) for name, value in given.inputs.items()}
            F = self._value(_forward_mode(x), _forward_mode(c_noise), given._replace(inputs=inputs))
            value, tangent = forward_ad.unpack_dual(F)
        return Dual(value, torch.zeros_like(value) if tangent is None else tangent.detach(), half_of(x, c_noise))

    def _reader(self, words: Words | Text) -> WordEncoder | TextTable:
        """What encodes captions. Vectors of a text encoder are what the library's network was trained with."""
        if isinstance(words, Words):
            return WordEncoder(words, self.width)
        if words.width != self.width:
            wanted = f"data.text.width = {words.width}"
            raise ValueError(f"arguments.{self.model.width}: expected {wanted}, got {self.width}")
        return TextTable(words)

    def _value(self, u: Tensor, c_noise: Tensor, given: Condition) -> Tensor:
        states = u.new_zeros(len(u), 1, self.width)
        if self.words is not None:
            states, given = self.words(given)
            states = states.to(u.dtype)
        sigma = self._level(c_noise)
        out = self._prediction(u, self._timestep(sigma), self.embedding(c_noise, given), states).to(u.dtype)
        if self.config.prediction == "v_prediction":
            return -out
        return expand_like(sigma, u) * u - expand_like((1 + sigma**2).sqrt(), u) * out

    def _prediction(self, u: Tensor, n: Tensor, extra: Tensor, states: Tensor) -> Tensor:
        """eps or v (B, C, H, W) at the timesteps n (B,), from the vectors (B, T, D) to attend to."""
        seen: dict[str, Any] = {"encoder_hidden_states": states, "return_dict": False}
        if self.config.model == "unet":
            return self.library(u, n, timestep_cond=extra, **seen)[0]
        if isinstance(self.words, TextTable):
            seen["encoder_attention_mask"] = (states != 0).any(-1)
        # Networks with `use_additional_conditions` see the size of the images.
        side, ratio = u.new_full((len(u), 2), PIXELS * self.resolution), u.new_ones(len(u), 1)
        size = {"resolution": side, "aspect_ratio": ratio}
        out = self.library(u, timestep=self.features(n) + extra, added_cond_kwargs=size, **seen)[0]
        return out[:, : self.channels]

    def _level(self, c_noise: Tensor) -> Tensor:
        """sigma/sigma_data (B,), from its coordinate (diffusion/precond.py)."""
        if self.config.c_noise == "trig":
            return c_noise.tan()
        return (c_noise * (4 if self.config.c_noise == "log" else 0.004)).exp() / self.config.sigma_data

    def _timestep(self, sigma: Tensor) -> Tensor:
        """n (B,), between timesteps linear in ln sigma."""
        known, wanted = self.log_sigmas, sigma.log()
        above = torch.searchsorted(known, wanted.detach()).clamp(1, len(known) - 1)
        low, high = known[above - 1], known[above]
        return above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)


def _forward_mode(value: Any) -> Any:
    """A Dual as a tensor of PyTorch's forward mode."""
    return forward_ad.make_dual(value.value, value.tangent.to(value.dtype)) if isinstance(value, Dual) else value


def library_class(model: str) -> Any:
    """The library's class of one of `MODELS`; a ConfigError where the package is not installed."""
    with contextlib.suppress(ImportError):  # diffusers imports it where it is installed
        import_torchvision()
    try:
        if model == "unet":
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

            return UNet2DConditionModel
        from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

        return PixArtTransformer2DModel
    except ModuleNotFoundError as error:
        raise missing("net.kind") from error


def _library_net(config: Config, channels: int, resolution: int) -> Any:
    made, known = library_class(config.model), MODELS[config.model]
    shape = {"sample_size": resolution, "in_channels": channels, "out_channels": known.outputs * channels}
    try:
        net = made(**shape, **config.arguments)
    except Exception as error:  # the library raises many kinds
        raise ValueError(f"arguments: expected those of {known.library}, got others ({reason(error)})") from error
    if config.model == "pixart":
        _check_pixart(net, resolution)
    return net


def _check_pixart(net: Any, resolution: int) -> None:
    """A ValueError for arguments that the library would take until the first images."""
    heads, patch = "num_attention_heads * attention_head_dim", net.config["patch_size"]
    if (got := net.config["cross_attention_dim"]) != net.inner_dim:
        raise ValueError(f"arguments.cross_attention_dim: expected {heads} = {net.inner_dim}, got {got}")
    if net.use_additional_conditions and net.inner_dim % 3:
        raise ValueError(f"arguments.use_additional_conditions: expected {heads} to be 3 n, got {net.inner_dim}")
    if resolution % patch:
        raise ValueError(f"arguments.patch_size: expected a divisor of the resolution {resolution}, got {patch}")


def missing(path: str) -> ConfigError:
    """The error of a missing package; `path` is that of the network's kind in the parameters."""
    return ConfigError(path, f"needs {NEEDS}, which is not installed: pip install -e '.[latents]'")


def build(
    config: Config, *, channels: int, resolution: int, classes: int, inputs: Sequence[Input] = (),
    words: Words | Text | None = None,
) -> DiffusersNet:  # fmt: skip
    """The network for images (channels, resolution, resolution), with random weights; without classes and words it is
    unconditional.

    `inputs` are those that the method declares beside images, noise levels and labels.

    Raises:
        ConfigError: diffusers is not installed.
        ValueError: the arguments are not those of the library's class.
    """
    return DiffusersNet(config, channels=channels, resolution=resolution, classes=classes, inputs=inputs, words=words)
