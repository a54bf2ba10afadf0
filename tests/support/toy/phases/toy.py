import time
from collections import OrderedDict

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from helios_cli.train.phase import Phase


def build(settings, start, device):
    return Toy(settings, start, device)


class Toy(Phase):
    def __init__(self, settings, start, device):
        self.settings, self.start, self.device = settings, start, device
        torch.manual_seed(settings.seed)
        net = OrderedDict(conv=nn.Conv2d(3, 5, 3, padding=1), act=nn.Tanh(), out=nn.Conv2d(5, 3, 1))
        self.players = {"net": nn.Sequential(net).to(device), "critic": nn.Linear(12, 2).to(device)}
        self.optimizers = {"critic": settings.critic}
        self.seen = 0

    def turns(self, step):
        return ["critic", "critic", "net"] if step % 2 else ["net"]

    def loss(self, player, share, sample):
        generator = share.generator(sample)
        picture = torch.randn(1, 3, 6, 6, generator=generator).to(self.device)
        if player == "critic":
            guess = self.players["critic"](picture[..., :2, :2].flatten(1))
            return (guess - picture.mean()).square().mean()
        return self.settings.loss.weight * (self.players["net"](picture) - picture.flip(-1)).square().mean()

    def backward(self, player, share):
        time.sleep(self.settings.faults.seconds)
        torch.empty(self.settings.memory.held, dtype=torch.uint8)
        self.seen += len(share.samples)
        total = torch.zeros((), device=self.device)
        for sample in share.samples:
            loss = self.loss(player, share, sample) / share.batch
            faults = self.settings.faults
            if faults.first <= share.step <= faults.last and faults.player in ("", player):
                loss = loss * float("nan")
            loss.backward()
            total += loss.detach()
        return {"error": total}

    def probe(self, share):
        with torch.no_grad():
            losses = [self.loss("net", share, sample) / share.batch for sample in share.samples]
        return {"probed": float(sum(losses, torch.zeros(())))}

    def samples(self, path, step):
        Image.new("RGB", (4, 4), "red").save(path)

    def save(self, folder):
        save_file({name: p.detach() for name, p in self.players["net"].named_parameters()}, folder / "net.safetensors")

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]
