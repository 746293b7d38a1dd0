# Text -> tokens. Experiments with the same data and tokenizer share the folder, which is all that the verb is told.


rule data:
    output:
        "results/data/{data}/manifest.json",
    log:
        "results/data/{data}/data.log",
    # leaves one for the forecast, which needs none of it
    threads: octavo.cpu_job_threads(config) or max(1, octavo.CORES - 1)
    resources:
        **octavo.cpu_job(config),
    shell:
        "octavo data results/data/{wildcards.data} > {log} 2>&1"
