"""Trains lessons as they are taught, in a plain loop, and from distrain's recipes, in turns: accuracy and time.

    python -m tests.benchmarks.lessons --data DIR

DIR holds CIFAR-10 as image folders, train/ and test/. The plain loop is the lesson's own: ImageFolder, a DataLoader
with two processes, model, loss, SGD, and a test at the end. distrain runs `distrain fit` on the lesson's recipe,
with its metrics, checkpoints and evaluations. Both times are from the start of a process to its end, imports included.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Lesson:
    """What a lesson's loop is made of."""

    batch_size: int
    learning_rate: float
    momentum: float
    mean: float  # of each channel; pixels are (x - mean) / std
    std: float


LESSONS = {
    "cifar10-lenet": Lesson(batch_size=4, learning_rate=0.001, momentum=0.9, mean=0.5, std=0.5),
    "cifar10-plain": Lesson(batch_size=64, learning_rate=0.01, momentum=0.0, mean=0.0, std=1.0),
}


class LeNet(nn.Module):
    """Two convolutions and three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        x = F.relu(self.fc2(x))
        logits: torch.Tensor = self.fc3(x)
        return logits


def plain() -> nn.Module:
    """Three 5x5 convolutions with pooling, and no activation, as in the lesson."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.Linear(64, 10),
    )  # fmt: skip


def teach(name: str, data: str, epochs: int) -> float:
    """Run the lesson's own loop and return its accuracy on the test images."""
    from torchvision import datasets, transforms

    lesson = LESSONS[name]
    normalize = transforms.Normalize([lesson.mean] * 3, [lesson.std] * 3)
    transform = transforms.Compose([transforms.ToTensor(), normalize])
    train = datasets.ImageFolder(f"{data}/train", transform)
    test = datasets.ImageFolder(f"{data}/test", transform)
    train_loader = DataLoader(train, batch_size=lesson.batch_size, shuffle=True, num_workers=2)
    test_loader = DataLoader(test, batch_size=lesson.batch_size, num_workers=2)
    net = LeNet() if name == "cifar10-lenet" else plain()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lesson.learning_rate, momentum=lesson.momentum)
    for epoch in range(epochs):
        running_loss = 0.0
        for i, (inputs, labels) in enumerate(train_loader):
            optimizer.zero_grad()
            loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if i % 2000 == 1999:
                print(f"[{epoch + 1}, {i + 1:5d}] loss: {running_loss / 2000:.3f}", file=sys.stderr)
                running_loss = 0.0
    correct = 0
    with torch.no_grad():
        for inputs, labels in test_loader:
            correct += int((net(inputs).argmax(1) == labels).sum())
    return correct / len(test)


def time_lesson(name: str, data: str, epochs: int, threads: int) -> tuple[float, float]:
    """Return accuracy and seconds of the lesson's loop in a process of its own; 0 threads leave torch's number."""
    command = [sys.executable, "-m", "tests.benchmarks.lessons", "--data", data, "--teach", name]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--epochs", str(epochs), "--threads", str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return float(done.stdout), time.perf_counter() - started


def time_distrain(name: str, data: str, epochs: int) -> tuple[float, float]:
    """Return accuracy and seconds of `distrain fit` on the recipe."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "distrain", "fit", name, f"--data={data}", f"--run={run}"]
        started = time.perf_counter()
        subprocess.run(
            [*command, f"--set=train.epochs={epochs}"], stdout=subprocess.DEVNULL, check=True, stdin=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - started
        return json.loads((run / "status.json").read_text())["last"]["val/top1"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as image folders")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="turns of each way")
    parser.add_argument("--threads", type=int, default=0, help="threads of the plain loop; 0 leaves torch's default")
    parser.add_argument("--lessons", nargs="+", choices=LESSONS, default=list(LESSONS))
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--teach", choices=LESSONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.teach is not None:
        if arguments.threads > 0:
            torch.set_num_threads(arguments.threads)
        print(teach(arguments.teach, arguments.data, arguments.epochs))
        return
    machine = f"{platform.machine()}, {torch.get_num_threads()} cores"
    results = {}
    for name in arguments.lessons:
        turns = [
            (
                time_lesson(name, arguments.data, arguments.epochs, arguments.threads),
                time_distrain(name, arguments.data, arguments.epochs),
            )
            for _ in range(arguments.turns)
        ]
        theirs, ours = zip(*turns, strict=True)
        results[name] = {
            "accuracy_lesson": [round(accuracy, 4) for accuracy, _ in theirs],
            "accuracy_distrain": [round(accuracy, 4) for accuracy, _ in ours],
            "seconds_lesson": round(statistics.median(seconds for _, seconds in theirs), 1),
            "seconds_distrain": round(statistics.median(seconds for _, seconds in ours), 1),
            "ratio": round(statistics.median(mine[1] / other[1] for other, mine in turns), 3),
        }
    if arguments.json:
        print(
            json.dumps(
                {
                    "torch": torch.__version__,
                    "machine": machine,
                    "epochs": arguments.epochs,
                    "threads": arguments.threads,
                    **results,
                }
            )
        )
        return
    threads = arguments.threads or "torch's own number of"
    print(f"torch {torch.__version__} on {machine}, {arguments.epochs} epochs, {arguments.turns} turns of each")
    print(f"the plain loop on {threads} threads")
    for name, found in results.items():
        print(f"{name:<15} lesson   {found['seconds_lesson']:7.1f} s, accuracy {found['accuracy_lesson']}")
        print(f"{'':<15} distrain {found['seconds_distrain']:7.1f} s, accuracy {found['accuracy_distrain']}")
        print(f"{'':<15} distrain's time is {found['ratio']} of the lesson's, median of the turns")


if __name__ == "__main__":
    main()
