"""Where runs happen and what it costs there: `configs/clusters/<name>.yaml` and `configs/clusters/devices/<name>.yaml`.

A device file holds what a vendor's data sheet says; a cluster file names a device, how many there are, what they cost
and how Slurm is to be asked for them. The experiment does not know the cluster beyond its name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from octavo.configuration import Section
from octavo.experiment.config import FileName


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


class Range(Section):
    """A figure that is not known exactly: its middle, and between what it lies.

    A plain number in a file is `low`, `middle` and `high` at once: it is taken as exact.
    """

    low: NonNegativeFloat
    """The least that is plausible."""
    middle: NonNegativeFloat
    """What is reckoned with."""
    high: NonNegativeFloat
    """The most that is plausible."""

    @model_validator(mode="before")
    @classmethod
    def _exact(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"low": value, "middle": value, "high": value}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.middle <= self.high:
            raise ValueError(f"low {self.low:g}, middle {self.middle:g}, high {self.high:g} are not in this order")
        return self

    @property
    def exact(self) -> bool:
        """Whether it has no width."""
        return self.low == self.high


def _exactly(value: float) -> Range:
    return Range(low=value, middle=value, high=value)


Commitment = Literal["on_demand", "one_year", "spot"]


class Rental(Section):
    """A price of a rented device-hour, on one basis."""

    per_device_hour: Range
    """Price of a device-hour, electricity included, in the cluster's currency."""
    commitment: Commitment = "on_demand"
    """By the hour, for a year, or capacity that may be taken away."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")] | None = None
    """When the price was asked (2026-05-20, or 2026-05); None: not known, which is said."""
    region: str | None = None
    """Where it holds; None: not said by the source."""
    includes: str | None = None
    """What is paid with it (host, network, storage); None: not said by the source."""
    source: str
    """Where the price comes from."""


class Ownership(Section):
    """Devices bought, as a total cost of ownership: an annuity on what was paid, hosting, maintenance, staff and
    electricity (`octavo.accounting.ownership`). Each key may be a number or a range."""

    price_per_device: Range
    """The device alone."""
    server_and_network_factor: Range = _exactly(1)
    """What host and network multiply that price by; 1: they are in it."""
    years: Range
    """Years until the devices are sold."""
    utilisation: Range
    """Share of those years' hours in which the device works for somebody. No goodput: lost work is work."""
    cost_of_capital: Range = Range(low=0.06, middle=0.10, high=0.15)
    """Interest and return on what was paid, a year."""
    residual_share: Range = Range(low=0, middle=0.10, high=0.15)
    """Share of what was paid that a sale at the end brings."""
    hosting_per_kw_month: Range = Range(low=115, middle=150, high=196)
    """Building, cooling and space for a kilowatt of drawn power, a month, electricity not included."""
    maintenance_share: Range = Range(low=0.02, middle=0.05, high=0.08)
    """Spare parts and support contracts, share of what was paid, a year."""
    staff_per_engineer: Range = Range(low=121_000, middle=138_000, high=200_000)
    """What an engineer costs the employer, a year."""
    devices_per_engineer: Range = Range(low=64, middle=128, high=512)
    """Devices that one engineer looks after."""
    idle_power_share: Range = Range(low=0.2, middle=0.3, high=1)
    """Power of a device and its share of the host while nobody uses it, as a share of that at work."""
    electricity_per_kwh: Range
    """Price of electricity, in the cluster's currency."""
    sources: Annotated[dict[str, str], Field(min_length=1)]
    """Key of this section -> document and page, with its date. A key that is not in here has the default."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for key in ("price_per_device", "server_and_network_factor", "years", "utilisation", "devices_per_engineer"):
            if getattr(self, key).low <= 0:
                raise ValueError(f"{key}: low is not above 0")
        for key in ("utilisation", "residual_share", "idle_power_share"):
            if getattr(self, key).high > 1:
                raise ValueError(f"{key}: high is above 1, and it is a share")
        return self


class Energy(Section):
    """From the devices' power to the meter of the building: (device + its share of the host) x PUE."""

    average_power_fraction: Range = _exactly(0.8)
    """Average over board power while training, where nothing measured it."""
    host_watts_per_device: Range = _exactly(0)
    """Average power of host and network per device; 0: energy is that of the devices."""
    pue: Range = _exactly(1)
    """Power usage effectiveness of the building: power at its meter over that of the machines."""
    carbon_kg_per_kwh: NonNegativeFloat | None = None
    """Carbon dioxide per kWh where the cluster stands; None: carbon is not reported."""
    location: str | None = None
    """Where that is."""
    sources: dict[str, str] = {}
    """Key of this section -> document and page, with its date."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.pue.low < 1:
            raise ValueError("pue: low is below 1: a building draws what its machines draw")
        if self.average_power_fraction.high > 1:
            raise ValueError("average_power_fraction: high is above 1, and it is a share of board power")
        if self.carbon_kg_per_kwh is not None and not (self.location and "carbon_kg_per_kwh" in self.sources):
            raise ValueError("carbon_kg_per_kwh needs location, and its source in sources")
        return self


Container = Literal["apptainer", "pyxis", "none"]


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
    gpus_by: Literal["gres", "gpus_per_node", "none"] = "gres"
    """How GPUs are asked for: `--gres=gpu:<type>:<n>`, `--gpus-per-node=<type>:<n>`, or by no option (of nodes that are
    given whole, `extra: [--exclusive]` say)."""
    exclude: list[str] = []
    """Nodes that no run is to be on (`--exclude`)."""
    same_nodes: bool = False
    """Whether all runs of an experiment are to be on the same nodes, one after another: as steps of one allocation
    (docs/sites/allocation.md), and not as jobs of their own, which Slurm gives any nodes."""
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
    srun: list[str] = []
    """Further options of the srun that starts a run's ranks (`--mpi=pmix`, `--cpu-bind=cores`)."""
    modules: list[str] = []
    """Environment modules loaded on the node before the container starts."""
    environment: dict[str, str] = {}
    """Variables set inside the container (NCCL settings, say)."""
    binds: list[str] = []
    """Further paths that the container sees, as Apptainer writes them (source[:target[:options]])."""
    container: Container = "apptainer"
    """What starts the image: `apptainer`, `pyxis` (`srun --container-image`), or `none`: there is no image."""
    image: Literal["gpu", "cpu"] | None = "gpu"
    """The variant of container.def that runs happen in; None: the Python that runs Octavo (`container: none`)."""
    probe: bool = True
    """Whether the pipeline looks at a node (`octavo doctor --probe`) before its first run of a day; its short job waits
    in the queue like any other."""
    scratch: str | None = None
    """Node-local folder that data sets are copied to (it needs an image); None: read where they are."""

    @model_validator(mode="before")
    @classmethod
    def _without_image(cls, value: Any) -> Any:
        """`container: none` and `image: null` say the same: one of them is enough."""
        if not isinstance(value, dict):
            return value
        if value.get("container") == "none":
            return {"image": None, **value}
        return {"container": "none", **value} if value.get("image", "") is None else value

    @model_validator(mode="after")
    def _contained(self) -> Self:
        if (self.container == "none") != (self.image is None):
            raise ValueError(f"container: {self.container} and image: {self.image or 'null'} contradict each other")
        return self

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
    other_rentals: list[Rental] = []
    """Prices on other bases (a year, spot), shown beside it."""
    ownership: Ownership | None = None
    """What devices and electricity cost bought."""
    price: Literal["rental", "ownership"] = "rental"
    """The one that costs are reported with; the other is shown beside it."""
    currency: str = "USD"
    """Currency of every price in this file."""
    energy: Energy = Energy()
    """From the devices' power to the meter."""
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


def gpu_option(cluster: Cluster, device: Device, count: int) -> str | None:
    """The option of sbatch and srun for so many GPUs of a node; None: cores, or `gpus_by: none`."""
    slurm = cluster.slurm
    if slurm is None or slurm.gpus_by == "none" or not gives_gpus(cluster, device):
        return None
    typed = f"{slurm.gpu_type}:{count}" if slurm.gpu_type else str(count)
    return f"--gres=gpu:{typed}" if slurm.gpus_by == "gres" else f"--gpus-per-node={typed}"
