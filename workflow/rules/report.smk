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
    shell:
        "octavo figures {params.arguments} > {log} 2>&1"


rule report:
    input:
        rules.aggregate.output,
        rules.claims.output,
        rules.figures.output,
        octavo.scope_plan,
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
    shell:
        "octavo report {params.arguments} > {log} 2>&1"
