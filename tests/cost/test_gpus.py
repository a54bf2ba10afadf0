"""GPUs that are not here: which name is which card, and what a plan makes of one."""

from __future__ import annotations

import pytest

from helios_cli.cost.gpus import KNOWN_GPUS, known_gpu, other_device, require_gpu, require_quant
from helios_cli.cost.placing import bandwidths_of
from helios_cli.cost.speeds import rates_of
from helios_cli.device import Device
from helios_cli.errors import InputError, MachineError

SIZE = 14_312_427_584

DRIVERS = {
    "NVIDIA GeForce RTX 3060": "RTX 3060 12GB",
    "NVIDIA GeForce RTX 4060 Ti": "RTX 4060 Ti 16GB",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA A10": "A10",
    "NVIDIA L4": "L4",
    "NVIDIA L40S": "L40S",
    "NVIDIA RTX A6000": "RTX A6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000",
    "NVIDIA A100-SXM4-40GB": "A100 40GB",
    "NVIDIA A100-PCIE-40GB": "A100 40GB",
    "NVIDIA A100 80GB PCIe": "A100 80GB",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H200": "H200",
    "NVIDIA B200": "B200",
    "AMD Instinct MI300X": "MI300X",
}
USERS = {"a100": "A100 80GB", "4060ti": "RTX 4060 Ti 16GB", "RTX5090": "RTX 5090", "3060 12gb": "RTX 3060 12GB"}
OTHERS = ["NVIDIA GeForce RTX 4070 Ti", "NVIDIA GeForce RTX 4080 SUPER", "NVIDIA L40", "NVIDIA A10G", "NVIDIA H100 NVL"]


def test_a_card_is_known_by_the_names_it_is_given():
    given = DRIVERS | USERS | {name: name for name in KNOWN_GPUS}
    assert {name: known_gpu(name)[0] for name in given} == given


@pytest.mark.parametrize("name", [*OTHERS, "", "rtx", "nvidia", "80gb", "4060 ti 8gb"])
def test_another_card_is_not_taken_for_one_that_is_called_alike(name):
    assert known_gpu(name) is None


@pytest.mark.parametrize(("name", "near"), [("4070 Ti", "RTX 4070"), ("rtx 6000", "RTX 6000 Ada"), ("h10", "H100")])
def test_an_unknown_name_shows_the_nearest(name, near):
    with pytest.raises(InputError, match="unknown GPU") as error:
        require_gpu(name)
    assert near in error.value.hint.partition(";")[0]


def test_no_figure_is_a_digit_off():
    """Facts that hold between the columns, whatever a row says: a digit too many or too few breaks one of them."""
    for name, gpu in KNOWN_GPUS.items():
        fed = gpu.bfloat16_flops / gpu.bandwidth
        assert 60 < fed < 500, name
        assert 1.9 < gpu.bfloat16_flops / gpu.float32_flops < 40, name
        assert gpu.fp8_flops is None or 1.9 < gpu.fp8_flops / gpu.bfloat16_flops < 2.1, name
        assert abs(gpu.memory_mib / 1024 / round(gpu.memory_mib / 1024) - 1) < 0.025, name


def test_a_faster_card_is_faster_and_memory_holds_others_back():
    def rate(name: str, **how) -> float:
        return rates_of(other_device(name), "bfloat16", SIZE, **how).dit_flops

    order = ["RTX 3060 12GB", "RTX 4070", "RTX 4090", "RTX 5090", "H100", "B200"]
    assert sorted(order, key=rate) == order
    assert rate("H100") == rate("H200") == pytest.approx(0.4 * 989e12)
    assert rate("L4") < 0.35 * 121e12  # 300 GB/s
    assert 1.1 < rate("H100", fp8_share=0.7) / rate("H100") < 1.5
    basis = rates_of(other_device("L4"), "bfloat16", SIZE).basis
    assert basis == "stated: 29% (transformer), 15% (VAE) of a peak of 121 TFLOP/s"


def test_weights_come_over_the_card_s_own_link():
    assert bandwidths_of("cuda", "NVIDIA GeForce RTX 5090").upload == 4 * bandwidths_of("cuda", "RTX 4060 Ti").upload
    assert bandwidths_of("cuda", "a GPU").upload == bandwidths_of("cuda", "RTX 4090").upload


@pytest.mark.parametrize("name", ["RTX 3090", "A10", "A100 80GB", "MI300X"])
def test_fp8_is_refused_where_no_products_are(name):
    with pytest.raises(MachineError, match=f"--quant fp8: {name} has no fp8 products"):
        require_quant("fp8", other_device(name))
    require_quant("none", other_device(name))
    for fast in ("L4", "RTX 4090", "H100"):
        require_quant("fp8", other_device(fast))
    with pytest.raises(MachineError):
        require_quant("fp8", Device("cuda", "a GPU", None, None, (8, 6)))
    require_quant("fp8", Device("cuda", "a GPU", None, None, (9, 0)))
    require_quant("fp8", Device("cpu", "a CPU", None, None))
