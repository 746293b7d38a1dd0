# Verdicts and tables -> figures -> PDF and HTML.


rule figures:
    input:
        rules.aggregate.output,
        rules.claims.output,
        octavo.scope_plan,
    output:
        report(
            directory("results/{scope}/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{scope}",
            labels={"figure": "{figure}"},
        ),
    log:
        "results/{scope}/logs/figures.log",
    threads: octavo.CORES
    params:
        arguments=octavo.scope_arguments,
        digest=octavo.figures_digest,
        prediction=octavo.prediction_digest,
    shell:
        "octavo figures {params.arguments} > {log} 2>&1"


# where seeds are added until decided: a report of the first ones, there to be read while more are trained. It stands
# where the whole one will, older than what this writes, so that the whole one is made whatever comes in between.
rule first_report:
    input:
        octavo.first_results,
    output:
        "results/{scope}/first-report.json",
    log:
        "results/{scope}/logs/first-report.log",
    priority: octavo.FIRST
    params:
        arguments=octavo.scope_arguments,
        fingerprint=octavo.first_report_fingerprint,
    shell:
        "octavo first-report {params.arguments} > {log} 2>&1"


rule report:
    input:
        rules.aggregate.output,
        rules.claims.output,
        rules.figures.output,
        octavo.scope_plan,
        octavo.first_report,
    output:
        report(
            "results/{scope}/report.pdf",
            caption="../report/report.rst",
            category="Report",
            labels={"scope": "{scope}", "as": "PDF"},
        ),
        report(
            "results/{scope}/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"scope": "{scope}", "as": "HTML"},
        ),
    log:
        "results/{scope}/logs/report.log",
    params:
        arguments=octavo.scope_arguments,
        digest=octavo.report_digest,
        verification=octavo.verification_digest,
        prediction=octavo.prediction_digest,
    shell:
        "octavo report {params.arguments} > {log} 2>&1"


# All experiments that have a report. It asks for none: what is not there yet is not on the page.
rule index:
    output:
        "results/index.html",
    log:
        "results/logs/index.log",
    params:
        digest=octavo.index_digest,
    shell:
        "octavo index > {log} 2>&1"
