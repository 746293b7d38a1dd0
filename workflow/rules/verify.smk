# Are the results reproducible? A sample of the runs is made again beside the originals. The rule records what was found
# and fails only where it could not look: Snakemake deletes what a failed job wrote, and what differs is to be read.
# `octavo verification results/<experiment>` gives the verdict as an exit status.


def largest_cell(wildcards):
    """The cell whose runs take the most devices: what is made again may be one of its."""
    return max(experiment(wildcards.experiment).cells.values(), key=lambda cell: cell.parallelism.world_size).cell


def verification_resource(key):
    return lambda wildcards: job_resources(wildcards.experiment, largest_cell(wildcards)).get(key)


rule verify:
    input:
        "results/{experiment}/claims.json",
    output:
        "results/{experiment}/verification.json",
    log:
        "results/{experiment}/logs/verify.log",
    threads: THIS_MACHINE
    resources:
        **{key: verification_resource(key) for key in [*jobs.RESOURCES, *jobs.caps()]},
    shell:
        "octavo verify results/{wildcards.experiment} --record > {log} 2>&1"
