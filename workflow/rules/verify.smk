# Verification: a sample of the runs is made again beside the originals. The rule records what was found
# and fails only where it could not look: Snakemake deletes what a failed job wrote, and what differs is to be read.
# `octavo verification results/<experiment>` gives the verdict as an exit status.


rule verify:
    input:
        "results/{experiment}/claims.json",
    output:
        report(
            "results/{experiment}/verification.json",
            caption="../report/verification.rst",
            category="Verification",
            labels={"experiment": "{experiment}", "what": "verification"},
        ),
    log:
        "results/{experiment}/logs/verify.log",
    threads: octavo.CORES
    resources:
        **octavo.verification_resources(),
    shell:
        "octavo verify results/{wildcards.experiment} --record > {log} 2>&1"
