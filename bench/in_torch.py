"""The lesson in PyTorch, without a pipeline, so that the pipeline has something to be compared with.

Run it with `python -m bench.in_torch` and a Python that has torch, NumPy, Pillow and scikit-learn: it reads the
bundled archive, trains as params.yaml says, and prints how good both models are.
"""

import torch
from torch import nn

from bench.in_scikit_learn import L2, read

EPOCHS, BATCH, RATE, MOMENTUM = 20, 64, 0.2, 0.9


def train(images: torch.Tensor, targets: torch.Tensor) -> nn.Linear:
    """A linear model of images (N, P) and targets (N,), by stochastic gradient descent."""
    torch.manual_seed(42)
    model = nn.Linear(images.shape[1], 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    batches = len(images) // BATCH
    groups = [{"params": [model.weight], "weight_decay": L2}, {"params": [model.bias]}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    loss = nn.BCEWithLogitsLoss()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images))[: batches * BATCH].reshape(batches, BATCH):
            optimizer.zero_grad()
            loss(model(images[batch])[:, 0], targets[batch]).backward()
            optimizer.step()
            schedule.step()
    return model


def main() -> None:
    """Read, train and print."""
    (images, labels), (valid, actual) = (tuple(map(torch.from_numpy, read(split))) for split in ("train", "valid"))
    means = torch.stack([images[labels == k].mean(0) for k in range(2)])
    far = torch.stack([(valid - mean).abs().mean(1) for mean in means], 1)
    print("baseline:", (far.argmin(1) == actual).float().mean().item())
    model = train(images, 1.0 - labels.float())
    with torch.no_grad():
        raw, targets = model(valid)[:, 0], 1.0 - actual.float()
        right = ((raw > 0) == (targets > 0)).float().mean().item()
        print("linear:", right, nn.functional.binary_cross_entropy_with_logits(raw, targets).item())


if __name__ == "__main__":
    main()
