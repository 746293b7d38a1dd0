# Text -> tokens. Experiments with the same data and tokenizer share the folder.


rule data:
    output:
        "results/data/{data}/manifest.json",
    log:
        "results/data/{data}/data.log",
    params:
        experiment=lambda wildcards: experiment_with_data(wildcards.data),
    threads: max(1, THIS_MACHINE - 1)  # leaves one for the forecast, which needs none of it
    shell:
        "octavo data {params.experiment} > {log} 2>&1"
