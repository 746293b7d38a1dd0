# One job per run. Checkpoints are no output: Snakemake deletes the outputs of failed jobs, and a run goes on from them.


def run_config(wildcards):
    of = experiment(wildcards.experiment)
    if wildcards.cell not in of.cells or int(wildcards.seed) not in of.file.seeds:
        raise WorkflowError(f"{of.path} has no run {wildcards.cell}/seed-{wildcards.seed}")
    return of.cells[wildcards.cell]


# The most devices that all runs together may hold on a cluster: a resource of each cluster file that has a cap.
for name, cap in jobs.caps().items():
    workflow.register_resource(name, cap)


@cache
def submitted(name):
    """An experiment whose runs may be Slurm jobs."""
    try:
        jobs.check_comments(experiment(name))
    except OctavoError as error:
        raise WorkflowError(str(error)) from None
    return experiment(name)


@cache
def job_resources(name, cell):
    """What a run asks of Slurm (octavo.cluster.job); other executors take no notice."""
    of = experiment(name)
    if of.cluster.slurm is None:
        return {"mem_mb": 0, "runtime": 0}  # not asked for; of these two Snakemake wants numbers
    try:
        return jobs.resources(submitted(name), of.cells[cell])
    except OctavoError as error:
        raise WorkflowError(str(error)) from None


def prerequisites(wildcards):
    """The forecast, the data and the image, which must be there first but train nothing again when they are made again.

    Only of a run that is done are they ancient: Snakemake overlooks that a job has reasons of its own to run when all
    of its inputs that are made again are ancient.
    """
    cell, seed = run_config(wildcards), int(wildcards.seed)
    folder = experiment(wildcards.experiment).folder.run(cell.cell, seed)
    done = finished(folder, run_fingerprint(cell.fingerprint, seed), data_set(wildcards.experiment))
    files = [f"results/{wildcards.experiment}/plan.csv", manifest_of(wildcards), *image_of(wildcards)]
    return [ancient(file) for file in files] if done else files


def job_resource(key):
    return lambda wildcards: job_resources(wildcards.experiment, run_config(wildcards).cell).get(key)


def nodes(wildcards, attempt):
    """None at all for a try that could end no other way than those before: the executor refuses to submit that."""
    of, cell, seed = experiment(wildcards.experiment), run_config(wildcards).cell, int(wildcards.seed)
    asked = job_resources(wildcards.experiment, cell).get("nodes")
    try:
        if asked:
            folder, retries = of.folder.run(cell, seed), jobs.slurm_section(of).retries
            launches.refuse_hopeless(folder, of.run(cell, seed), tries=attempt, retries=retries)
    except OctavoError as error:
        logger.error(f"not tried again: {error}")
        return 0
    return asked


rule train:
    input:
        prerequisites,
    output:
        "results/{experiment}/runs/{cell}/seed-{seed}/result.json",
    log:
        "results/{experiment}/logs/{cell}-seed-{seed}.log",
    params:
        fingerprint=lambda wildcards: run_fingerprint(
            run_config(wildcards).fingerprint, int(wildcards.seed)
        ),
    # the longest runs begin first, so that none trains alone while the other cores wait for the report
    priority: lambda wildcards: experiment(wildcards.experiment).relative_length(run_config(wildcards).cell)
    threads: lambda wildcards: run_config(wildcards).training.threads * run_config(wildcards).parallelism.world_size
    # where jobs are submitted, as what ended one may be the cluster's doing; not by the Snakemake inside a job
    retries: jobs.most_retries() if workflow.is_main_process and workflow.resource_settings.nodes else 0
    resources:
        attempt=lambda wildcards, attempt: attempt,
        **{key: job_resource(key) for key in [*jobs.RESOURCES, *jobs.caps()]} | {"nodes": nodes},
    shell:
        "OCTAVO_TRY={resources.attempt} octavo train results/{wildcards.experiment}/runs/{wildcards.cell}/seed-{wildcards.seed} >> {log} 2>&1"
