# Verdicts and tables -> figures -> PDF and HTML.


rule figures:
    input:
        rules.aggregate.output,
        rules.claims.output,
    output:
        directory("results/{scope}/figures"),
    log:
        "results/{scope}/logs/figures.log",
    params:
        arguments=scope_arguments,
    threads: THIS_MACHINE
    shell:
        "octavo figures {params.arguments} > {log} 2>&1"


def verification_digest(wildcards):
    """Changes when the results were verified since: the report has a page about it, but does not wait for it."""
    path = ExperimentFolder(Path("results") / wildcards.scope).verification
    return sha256(path) if path.exists() else None


rule report:
    input:
        rules.aggregate.output,
        rules.claims.output,
        rules.figures.output,
    output:
        "results/{scope}/report.pdf",
        "results/{scope}/report.html",
    log:
        "results/{scope}/logs/report.log",
    params:
        arguments=scope_arguments,
        verification=verification_digest,
    shell:
        "octavo report {params.arguments} > {log} 2>&1"
