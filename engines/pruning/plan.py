"""What to prune, checked when it is said."""

from dataclasses import dataclass

from serving.errors import UserError


@dataclass(frozen=True)
class Pruning:
    """What the user wants pruned. Raises UserError for what can't be meant."""

    weights: float | None = None
    """Fraction of each linear layer's weights to set to zero."""
    two_of_four: bool = False
    """Whether to set two of every four weights along a linear layer's inputs to zero."""
    heads: float | None = None
    """Fraction of each layer's attention heads to remove."""
    channels: float | None = None
    """Fraction of each MLP's channels to remove."""
    layers: int = 0
    """Layers to remove."""

    def __post_init__(self) -> None:
        for option, fraction in (
            ("--prune", self.weights),
            ("--prune-heads", self.heads),
            ("--prune-channels", self.channels),
        ):
            if fraction is not None and not 0 < fraction < 1:
                raise UserError(
                    f"{option} {fraction:g} isn't possible: give a fraction above 0 and below 1."
                )
        if self.layers < 0:
            raise UserError(f"--prune-layers {self.layers} isn't possible: give a count of layers.")
        if self.weights is not None and self.two_of_four:
            raise UserError("--prune and --prune-2-4 exclude each other: choose one.")

    def check_layers(self, layers: int) -> None:
        """Raise UserError if none of so many layers would stay."""
        if self.layers >= layers:
            raise UserError(
                f"--prune-layers {self.layers} would remove all {layers} layers: at least one has "
                "to stay."
            )

    @property
    def changes_widths(self) -> bool:
        """Whether linear layers lose inputs."""
        return self.heads is not None or self.channels is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be pruned."""
        return self == Pruning()
