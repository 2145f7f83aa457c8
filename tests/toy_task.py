"""A regression task of mmengine alone, imported by the toy config through ``custom_imports``."""

from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS


@DATASETS.register_module()
class ToyData(BaseDataset):
    """Eight points of a line."""

    def load_data_list(self) -> list[dict[str, Any]]:
        return [dict(x=index / 8, y=index / 4) for index in range(8)]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        info = self.get_data_info(idx)
        return dict(
            inputs=torch.tensor([info['x']]), data_samples=dict(y=torch.tensor([info['y']]))
        )


@MODELS.register_module()
class ToyModel(BaseModel):
    """One linear layer; ``nan_after`` steps its loss is NaN."""

    def __init__(self, width: int = 1, nan_after: int | None = None) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(1, width)
        self.head = torch.nn.Linear(width, 1)
        self.nan_after = nan_after
        self.steps = 0

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        x = torch.stack(list(inputs))
        y = self.head(self.hidden(x))
        if mode != 'loss':
            return [dict(prediction=value) for value in y]
        self.steps += 1
        target = torch.stack([sample for sample in data_samples['y']])
        poison = float('nan') if self.nan_after is not None and self.steps > self.nan_after else 1.0
        return dict(loss_fit=(y - target).square().mean() * poison, loss_other=y.mean() * 0)


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """The mean prediction."""

    default_prefix = 'toy'

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [float(sample['prediction']) for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return dict(mean=sum(results) / len(results), count=len(results))
