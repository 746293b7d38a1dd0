# Before the first run of a day is submitted: does the cluster file fit the cluster, and are its nodes fit for runs?


rule probe:
    input:
        octavo.probe_inputs,
    output:
        "results/probes/{cluster}.json",
    log:
        "results/probes/{cluster}.log",
    params:
        options=octavo.probe_options,
        day=octavo.probe_day,
    shell:
        "octavo doctor --cluster {wildcards.cluster} {params.options} --record > {log} 2>&1"
