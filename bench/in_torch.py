"""The lesson as a plain script in PyTorch, for comparison.

Run `python -m bench.in_torch` with a Python that has torch, NumPy, Pillow and
scikit-learn. It trains with the default params.yaml, and prints what
bench.in_scikit_learn prints.
"""

import torch
from torch import nn

from bench.in_scikit_learn import L2, read

EPOCHS, BATCH_SIZE, LEARNING_RATE, MOMENTUM = 20, 64, 0.2, 0.9


def train(images: torch.Tensor, targets: torch.Tensor) -> nn.Linear:
    """Fit a linear model to images (N, P) and targets (N,) by SGD."""
    torch.manual_seed(42)
    model = nn.Linear(images.shape[1], 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    groups = [{"params": [model.weight], "weight_decay": L2}, {"params": [model.bias]}]
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM)
    steps = len(images) // BATCH_SIZE  # in an epoch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    loss = nn.BCEWithLogitsLoss()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))[: steps * BATCH_SIZE]
        for batch in order.reshape(steps, BATCH_SIZE):
            optimizer.zero_grad()
            loss(model(images[batch])[:, 0], targets[batch]).backward()
            optimizer.step()
            schedule.step()
    return model


def main() -> None:
    """Fit both models and print their metrics."""
    (images, labels), (valid, actual) = (
        tuple(map(torch.from_numpy, read(split))) for split in ("train", "valid")
    )
    means = torch.stack([images[labels == k].mean(0) for k in range(2)])
    distances = torch.stack([(valid - mean).abs().mean(1) for mean in means], 1)
    print("baseline:", (distances.argmin(1) == actual).float().mean().item())
    model = train(images, 1.0 - labels.float())
    with torch.no_grad():
        logits, targets = model(valid)[:, 0], 1.0 - actual.float()
    accuracy = ((logits > 0) == (targets > 0)).float().mean().item()
    log_loss = nn.functional.binary_cross_entropy_with_logits(logits, targets).item()
    print("trained:", accuracy, log_loss)


if __name__ == "__main__":
    main()
