# What the rules share: wildcards. What things mean, and what rules ask, is in the package (octavo.workflow).
#
# `snakemake --lint` finds one thing: no rule names a conda environment or a container. That is meant: rules call the
# `octavo` that is installed with the Snakemake that runs them, from a pinned lock (make setup), and training jobs on a
# cluster start the container that their cluster file names themselves (octavo.cluster.launch).

import sys

from octavo import workflow as octavo

octavo.put_programs_on_path()
if workflow.is_main_process:
    octavo.check_writable(sys.argv[1:])
octavo.check_experiments(sys.argv[1:])  # Snakemake itself looks at its targets when all rules are read


wildcard_constraints:
    experiment=r"[A-Za-z0-9][\w.-]*",
    # an experiment, or one ablation of it: the same reports are made of both
    scope=r"[A-Za-z0-9][\w.-]*(/ablations/[A-Za-z0-9][\w.]*)?",
    cell=r"[\w.]+-[\w.]+(\+[\w.]+)?",
    seed=r"\d+(/horizon-\d+)?",  # the whole length, or a shorter one for which a run is planned
    after=r"\d+",
    data=r"[0-9a-f]{16}",
    variant=r"gpu|cpu",
    cluster=r"[A-Za-z0-9][\w.-]*",
