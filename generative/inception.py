"""The Frechet distance in features of Inception v3, the FID of the literature, by torch-fidelity.

torch-fidelity and the weights of the network are the user's; nothing else needs them.
"""

from torch import Tensor
from torch.utils.data import TensorDataset

NAME, FEATURES = "inception-v3-compat", "2048"


class _Images(TensorDataset):
    """Items are images alone, uint8 (3, h, w), as torch-fidelity wants them."""

    def __getitem__(self, index: int) -> Tensor:
        return super().__getitem__(index)[0]


def check_inception() -> None:
    """Refuse a run that could not be measured, before it starts.

    Raises
    ------
    ValueError
        If torch-fidelity is not installed, or if its weights are not here and cannot be fetched.
    """
    try:
        from torch_fidelity.utils import create_feature_extractor
    except ImportError:
        raise ValueError(
            "inception: torch-fidelity is not installed; pip install torch-fidelity"
        ) from None
    try:
        create_feature_extractor(NAME, [FEATURES], cuda=False, verbose=False)
    except Exception as error:  # whatever it meets, there is no distance
        raise ValueError(f"inception: the weights of Inception cannot be had ({error})") from None


def inception_distance(x: Tensor, y: Tensor, shape: tuple[int, int, int]) -> float:
    """FID (Heusel et al. 2017) of images x and y, rows (n, c h w) from -1 to 1; c is 1 or 3."""
    from torch_fidelity import calculate_metrics

    first, second = (
        _Images(
            ((z + 1) * 127.5).round().clamp(0, 255).byte().unflatten(1, shape).expand(-1, 3, -1, -1)
        )
        for z in (x.cpu(), y.cpu())
    )
    found = calculate_metrics(
        input1=first,
        input2=second,
        fid=True,
        cuda=x.is_cuda,
        feature_extractor=NAME,
        feature_layer_fid=FEATURES,
        verbose=False,
    )
    return float(found["frechet_inception_distance"])
