"""Where runs happen and what it costs there: `configs/clusters/<name>.yaml` and `configs/clusters/devices/<name>.yaml`.

A device file holds what a vendor's data sheet says; a cluster file names a device, how many there are, what they cost
and how Slurm is to be asked for them. The experiment does not know the cluster beyond its name.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from octavo.configuration import Section
from octavo.experiment.config import FileName, Fraction


class Device(Section):
    """One kind of device, as its vendor describes it. Rates are dense (no sparsity)."""

    name: str
    """The device's name, as tables print it."""
    kind: Literal["gpu", "cpu"]
    """GPU, or CPU core."""
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d$")] | None = None
    """NVIDIA's; None on CPUs."""
    peak_tflops: dict[Literal["fp32", "bf16", "fp8", "fp4"], PositiveFloat]
    """Peak TFLOPS by the precision of the operands."""
    memory_gib: PositiveFloat
    """GiB of 2^30 bytes, as the device reports it; data sheets speak of GB."""
    memory_gb_per_second: PositiveFloat
    """Bandwidth of the device's memory, GB of 10^9 bytes."""
    link_gb_per_second: NonNegativeFloat
    """NVLink (or PCIe) per device and direction, within a node or NVLink domain."""
    link_domain: PositiveInt
    """Devices that reach one another over that link."""
    network_gb_per_second: NonNegativeFloat
    """Network per device and direction, between link domains."""
    power_watts: PositiveFloat
    """The device's board power (TDP)."""
    sources: Annotated[dict[str, str], Field(min_length=1)]
    """Key of this file -> document and page."""


class Rental(Section):
    """A price per device-hour."""

    per_device_hour: NonNegativeFloat
    """Price of a device-hour, electricity included, in the cluster's currency."""
    source: str
    """Where the price comes from."""


class Ownership(Section):
    """Devices bought: price written off over years of use, and electricity."""

    price_per_device: PositiveFloat
    """The device alone."""
    server_and_network_factor: PositiveFloat = 1.0
    """What host, network and building multiply that price by."""
    years: PositiveFloat
    """Amortisation."""
    utilisation: Annotated[float, Field(gt=0, le=1)]
    """Share of those years in which the device works."""
    electricity_per_kwh: NonNegativeFloat
    """Price of electricity, in the cluster's currency."""
    pue: Annotated[float, Field(ge=1)]
    """Power usage effectiveness of the building."""
    host_watts_per_device: NonNegativeFloat = 0.0
    """Power of host and network, per device."""
    sources: Annotated[dict[str, str], Field(min_length=1)]
    """Key of this section -> document and page."""


class Slurm(Section):
    """How jobs are asked for."""

    partition: str | None = None
    """`--partition`; None: Slurm's default."""
    account: str | None = None
    """`--account`; None: the user's default."""
    qos: str | None = None
    """`--qos`; None: the default."""
    constraint: str | None = None
    """`--constraint`, features of nodes; None: any node."""
    gpu_type: str | None = None
    """The type in the cluster's gres (`gpu:<type>:<n>`); None: any."""
    time_limit_minutes: PositiveInt = 60
    """`--time` of a job."""
    signal_seconds: PositiveInt = 120
    """Slurm signals a job this long before its limit, so that it can save and leave."""
    cpus_per_device: PositiveInt = 8
    """CPU cores asked for per device."""
    memory_gb_per_device: PositiveInt = 64
    """Memory of the host asked for per device, GB."""
    max_concurrent_devices: PositiveInt | None = None
    """Over all of an experiment's jobs at one time; None: no cap."""
    retries: NonNegativeInt = 3
    """Tries at one run after the first."""
    requeue: bool = True
    """Whether Slurm may requeue a job that was pre-empted or whose node failed."""
    extra: list[str] = []
    """Further options of sbatch."""
    modules: list[str] = []
    """Environment modules loaded on the node before the container starts."""
    environment: dict[str, str] = {}
    """Variables set inside the container (NCCL settings, say)."""
    binds: list[str] = []
    """Further paths that the container sees, as Apptainer writes them (source[:target[:options]])."""
    image: Literal["gpu", "cpu"] | None = "gpu"
    """The variant of container.def that runs happen in; None: the Python that runs Octavo."""
    scratch: str | None = None
    """Node-local folder that data sets are copied to (it needs an image); None: read where they are."""

    @model_validator(mode="after")
    def _signalled(self) -> Self:
        if self.signal_seconds >= 60 * self.time_limit_minutes:
            limit = 60 * self.time_limit_minutes
            raise ValueError(f"signal_seconds: {self.signal_seconds} leaves nothing of a time limit of {limit} s")
        return self

    @model_validator(mode="after")
    def _staged(self) -> Self:
        if self.scratch is not None and self.image is None:
            raise ValueError("scratch needs an image, in which its copy of the data takes the place of the original")
        return self


class Cluster(Section):
    """Devices, how they hang together, what they cost, and how to get them."""

    description: str
    """What the cluster is, as plans print it."""
    device: FileName
    """A file in configs/clusters/devices (without .yaml)."""
    devices_per_node: PositiveInt
    """Devices of a node."""
    nodes: PositiveInt
    """Nodes that an experiment may use."""
    cuda: Annotated[str, Field(pattern=r"^\d+\.\d+$")] | None = None
    """CUDA version of the runs' environment (some recipes need a newer one); None on CPUs."""
    link_domain: PositiveInt | None = None
    """Devices in one NVLink domain, where it is not the device file's."""
    rental: Rental | None = None
    """What a device-hour costs rented."""
    ownership: Ownership | None = None
    """What devices and electricity cost bought."""
    price: Literal["rental", "ownership"] = "rental"
    """The one that costs are reported with; the other is shown beside it."""
    currency: str = "USD"
    """Currency of every price in this file."""
    average_power_fraction: Fraction = 0.8
    """Average over board power while training, where nothing measured it."""
    slurm: Slurm | None = None
    """How jobs are submitted; None: runs are started on this machine."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if getattr(self, self.price) is None:
            raise ValueError(f"price: {self.price} needs the section {self.price}")
        return self

    @property
    def devices(self) -> int:
        """All devices of the cluster."""
        return self.devices_per_node * self.nodes


def gives_gpus(cluster: Cluster, device: Device) -> bool:
    """Whether the devices that Slurm is asked for are GPUs; otherwise they are cores."""
    return device.kind == "gpu" or (cluster.slurm is not None and cluster.slurm.gpu_type is not None)
