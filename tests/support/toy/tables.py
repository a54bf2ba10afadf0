from helios_cli.train.settings.run import Count, Optimizer, Table, TrainingSettings


class Faults(Table):
    """Steps at which the loss of `player`, or of all, is not a number, and seconds that a step takes longer."""

    first: Count = 0
    last: int = -1
    player: str = ""
    seconds: float = 0.0


class Loss(Table):
    weight: float = 1.0


class Memory(Table):
    held: Count = 0  # bytes
    adapters: Count = 0


class ToySettings(TrainingSettings):
    loss: Loss = Loss()
    faults: Faults = Faults()
    memory: Memory = Memory()
    optimizer: Optimizer = Optimizer(lr=1e-2, muon=("conv.*",), muon_lr=1e-2)
    critic: Optimizer = Optimizer(lr=5e-3, clip=0.0)
