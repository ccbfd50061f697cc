"""Networks that are no language model, the same weights each time, and jobs for them. Their
functions are what `base add --factory` names, too."""

import torch
from torch import nn

from lora_core import AdapterSpec, ArrayExamples, ArrayTask, TrainingJob

WORDS, LENGTH, CLASSES = 31, 7, 5


class Mlp(nn.Module):
    """[B, 12] to [B, 3]; a GELU, whose bits depend on how a kernel takes its vectors."""

    def __init__(self, width=24):
        super().__init__()
        self.first = nn.Linear(12, width)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 3)

    def forward(self, x):
        return self.last(self.norm(nn.functional.gelu(self.first(x))))


class ConvNet(nn.Module):
    """[B, 3, 9, 9] to [B, CLASSES]: strides, padding, dilation, a batch norm, a depthwise layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 6, (3, 2), padding=(2, 0), dilation=(2, 1), bias=False)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.silu(self.second(self.deep(x)))
        return self.last(x.mean((2, 3)))


class Signal(nn.Module):
    """[B, 2, 20] to [B, 2, 20]: convolutions in one dimension, circular padding."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv1d(2, 6, 5, padding="same", padding_mode="circular")
        self.back = nn.Conv1d(6, 2, 1)

    def forward(self, x):
        return self.back(torch.tanh(self.wide(x)))


class Words(nn.Module):
    """ids [B, LENGTH] to [B, CLASSES]: an embedding, a linear layer over every word."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 16, padding_idx=0)
        self.mix = nn.Linear(16, 16)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, ids):
        return self.last(torch.sigmoid(self.mix(self.words(ids))).mean(1))


class Crowd(nn.Module):
    """[B, 4] to [B, 2]: every example sees the mean of all."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        return self.last(torch.relu(self.first(x - x.mean(0))))


class Sideways(nn.Module):
    """[B, 6, 4] to [B, 4]: its layer sees the examples on the second axis."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        return self.first(x.transpose(0, 1).contiguous()).mean(0)


TASKS = {
    "mlp": (Mlp, ArrayTask("regression", (12,))),
    "convnet": (ConvNet, ArrayTask("classification", (3, 9, 9))),
    "signal": (Signal, ArrayTask("regression", (2, 20))),
    "words": (Words, ArrayTask("classification", (LENGTH,), torch.int64)),
    "crowd": (Crowd, ArrayTask("regression", (4,))),
    "sideways": (Sideways, ArrayTask("regression", (6, 4))),
}
_OUTPUTS = {"mlp": (3,), "signal": (2, 20), "crowd": (2,), "sideways": (4,)}


def network(kind, dtype=torch.float32):
    """(network, task); a batch norm has seen something."""
    make, task = TASKS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        made = make()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return made.to(dtype).eval(), task


def mlp(width=24):
    """A factory."""
    return Mlp(width)


def convnet():
    """A factory."""
    return ConvNet()


def arrays(kind, seed, count=20):
    """Random examples that a job can learn."""
    task = TASKS[kind][1]
    generator = torch.Generator().manual_seed(seed)
    if kind == "words":
        x = torch.randint(0, WORDS, (count, LENGTH), generator=generator)
        return ArrayExamples(x, x.sum(1) % CLASSES)
    x = torch.randn(count, *task.shape, generator=generator)
    if task.kind == "classification":
        return ArrayExamples(x, (x.flatten(1)[:, :CLASSES] * 3).argmax(1))
    return ArrayExamples(x, torch.randn(count, *_OUTPUTS[kind], generator=generator))


def job(kind, name, seed, **changes):
    """A small job; `spec_*` changes go into its spec."""
    spec = {k.removeprefix("spec_"): v for k, v in changes.items() if k.startswith("spec_")}
    rest = {k: v for k, v in changes.items() if not k.startswith("spec_")}
    given = dict(epochs=2, batch_size=4, learning_rate=5e-3, seed=seed)
    given |= {} if "examples" in rest else {"examples": arrays(kind, seed)}
    return TrainingJob(
        job_id=name,
        spec=AdapterSpec(**{"r": 2, "alpha": 4.0, "seed": seed, **spec}),
        **{**given, **rest},
    )
