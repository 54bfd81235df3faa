"""What is checked when a checkpoint is loaded: its configuration is possible, and its weights are all there and fit."""

import json

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import GenerationConfig

# A damaged number must not take all of a machine's memory before the weights turn out not to fit: these limits are far
# above the paper's models.
LAYERS = range(1, 257)
WIDTHS = range(1, 32769)
RATES = range(1, 1_000_001)  # hertz (Hz)
MAX_PARAMETERS = 5 * 10**9  # of a part; the paper's decoder has 1.1 x 10^9

TRANSFORMER_SIZES = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTHS,
    "hidden_size": WIDTHS,
    "intermediate_size": WIDTHS,
}
NAMED = 3  # weights that an error names
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def require_whole_numbers(values: dict, allowed: dict[str, range], part: str = "") -> None:
    """Raise ValueError unless every name of `allowed` has a whole number in its range among `values`.

    Args:
        part: of the configuration, with a dot at its end ("decoder_config."); stands before the names in messages.
    """
    for name, numbers in allowed.items():
        value = values[name]
        if type(value) is not int or value not in numbers:
            raise ValueError(
                f"`{part}{name}` must be a whole number from {numbers[0]} to {numbers[-1]}, got {value!r}."
            )


def require_one_of(values: dict, allowed: dict[str, tuple]) -> None:
    """Raise ValueError unless every name of `allowed` has one of its choices among `values`."""
    for name, choices in allowed.items():
        if values[name] not in choices:
            raise ValueError(f"`{name}` must be one of {list(choices)}, got {values[name]!r}.")


def require_affordable(num_parameters: int, what: str) -> None:
    """Raise ValueError for a number of parameters that no model here has."""
    if num_parameters > MAX_PARAMETERS:
        raise ValueError(
            f"{what} may have {MAX_PARAMETERS:.0e} parameters, got sizes for about {num_parameters:.0e}: make its "
            "layers fewer or narrower."
        )


def require_transformer(values: dict, part: str) -> None:
    """Raise ValueError unless sizes of a stack of transformer layers, named as in `TRANSFORMER_SIZES`, can be."""
    require_whole_numbers(values, TRANSFORMER_SIZES, part)
    require_affordable(
        stack_parameters(values["num_hidden_layers"], values["hidden_size"], values["intermediate_size"]),
        f"`{part.removesuffix('.')}`",
    )


def stack_parameters(num_layers: int, hidden_size: int, intermediate_size: int) -> int:
    """About how many parameters a stack of layers has: attention, and a feed-forward module with a gate."""
    return num_layers * hidden_size * (4 * hidden_size + 3 * intermediate_size)


def require_generation_config(name: str, hub_options: dict) -> None:
    """Raise ValueError for a damaged generation_config.json, which transformers takes for none: stems would differ."""
    try:
        GenerationConfig.from_pretrained(name, **hub_options)
    except OSError as error:
        if not isinstance(error.__context__, (json.JSONDecodeError, UnicodeDecodeError)):
            return  # there is none, and need not be; or no such checkpoint, as loading it will say
    except (AttributeError, TypeError):
        pass  # JSON, but no object
    else:
        return
    raise ValueError(f"The generation_config.json in {name} is no JSON object: get the checkpoint again.")


class CheckedConfig:
    """For configurations: whatever is wrong with a config.json is a ValueError of one sentence.

    Attributes:
        left_out: names in a config.json that are not read.
    """

    left_out = ()

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in the base class.

        Raises:
            ValueError: another model's configuration or none (transformers reads a missing file as an empty one), or
                values that cannot be.
        """
        model_type = config_dict.get("model_type")
        if model_type != cls.model_type:
            raise ValueError(
                f"A config.json with `model_type` {cls.model_type!r} is needed, got {model_type!r}: this is no "
                f"checkpoint that {cls.__name__} describes."
            )
        config_dict = {name: value for name, value in config_dict.items() if name not in cls.left_out}
        try:
            return super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            # What `strict` found stands in the cause; for types it goes on with a list of all that it tried.
            reason = str(error.__cause__).partition(" Errors: ")[0]
            raise ValueError(f"Not a configuration that {cls.__name__} can have: {reason}") from error


class CheckedWeights:
    """For models: weights that do not fit the configuration are an error, where transformers draws random ones."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs,
    ):
        """As in the base class, but only safetensors are read unless `use_safetensors=False` is given.

        Raises:
            ValueError: weights are missing, left over, of other shapes (allowed with `ignore_mismatched_sizes`), or
                their file or generation_config.json is damaged.
            OSError: no such folder or repository, or no weights in it.
        """
        if cls.can_generate():
            require_generation_config(
                pretrained_model_name_or_path, {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            )
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to report them together with the others
                **{"use_safetensors": True, **kwargs},
            )
        except SafetensorError as error:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} are damaged or no safetensors ({error}): get the "
                "checkpoint again."
            ) from error
        found = {"missing": sorted(info["missing_keys"]), "unknown": sorted(info["unexpected_keys"])}
        if not ignore_mismatched_sizes:
            found["of another shape"] = sorted(name for name, *_ in info["mismatched_keys"])
        problems = [
            f"{len(names)} {problem} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
            for problem, names in found.items()
            if names
        ]
        if problems:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} do not fit its configuration, "
                f"{' and '.join(problems)}: get the checkpoint again, with the config.json that it was saved with."
            )
        return (model, info) if output_loading_info else model
