"""What a device is expected to reach: rates of single layers by the forecast's constants, of links by the data sheet.

The forecast's time of a product is that of three passes (`octavo.forecast.gpu`), and what quantising its operands
moves; its interval is that of a whole step of its kind. No GPU has been measured for this: the constants are fitted to
published steps.
"""

from __future__ import annotations

import math

from octavo.experiment.cluster import Cluster, Device
from octavo.forecast.calibration import gpu_calibration
from octavo.forecast.gpu import BF16, PASSES, TERA, Rates, width
from octavo.forecast.setting import Setting, plain_layout, plain_training
from octavo.models.catalogue import read_architecture
from octavo.precision.config import Precision
from octavo.records import MeasuredMessage, MeasuredProduct

LEAST_OF_LINK = 0.7
"""Share of the data sheet's rate that large messages are to reach: a judgement."""
QUANTISING = 2 * BF16
"""Bytes of an operand's element: it is read in BF16 and written in FP8, as it is and transposed."""


def product_tflops(one: MeasuredProduct, precision: Precision, device: Device) -> tuple[float, float]:
    """TFLOP/s that a layer's three passes are forecast to reach, and the lower end of the forecast's interval."""
    calibration = gpu_calibration()
    constants = calibration.constants
    setting = Setting(
        model=read_architecture("node-dense"),  # no product's time depends on it
        training=plain_training(1, 1, one.rows),
        layout=plain_layout(1, 1, 1, 1, 1, 1),
        precision=precision,
        device=device,
        link_domain=device.link_domain,
    )
    rates = Rates(setting, constants)
    rate = rates.low if one.matrices == 1 else rates.experts
    busy = one.matrices * rates.product(one.rows, one.inner, one.columns, rate, quantised=rates.quantised)
    if rates.quantised:
        elements = one.rows * one.inner + one.inner * one.columns + one.rows * one.columns
        busy += one.matrices * constants.memory_passes * QUANTISING * elements / rates.memory
    if one.matrices > 1:  # launched one by one
        host = one.matrices * constants.host_expert * (constants.host_quantising if rates.quantised else 1.0)
        busy = (busy**constants.host_overlap + host**constants.host_overlap) ** (1 / constants.host_overlap)
    tflops = PASSES * 2 * one.matrices * one.rows * one.inner * one.columns / busy / TERA
    of_kind = calibration.kinds["dense" if one.matrices == 1 else "experts"]
    return tflops, tflops * math.exp(-of_kind.half_width)


def peak_tflops(precision: Precision, device: Device) -> float:
    """The data sheet's, of products of the recipe's width."""
    return device.peak_tflops[width(precision.recipe)]


def message_gb_per_second(one: MeasuredMessage, cluster: Cluster, device: Device, nodes: int) -> tuple[float, str]:
    """What the data sheet's rates let a device send of a message over so many nodes, and the way that bounds it.

    An all-reduce sums within link domains first, so that each device sends its share of the sums alone over its own
    network; of an all-to-all only what is for other domains takes the network.
    """
    link, network = device.link_gb_per_second, device.network_gb_per_second
    domain = cluster.link_domain or device.link_domain
    near = domain if domain > cluster.devices_per_node else min(domain, -(-one.ranks // nodes))
    far = one.ranks - near
    if far <= 0:
        return link, "the link"
    if one.kind == "all-reduce":
        together = network * near
        return (together, f"the network of {near} GPUs together") if together < link else (link, "the link")
    if one.kind == "all-to-all":
        return network * (one.ranks - 1) / far, f"the network, which {far} of {one.ranks - 1} parts take"
    return network, "the network"
