"""A sweep's report: one HTML file to look at, with all that it needs inside.

    story        what is told: a sweep's plan, trials and summary, read once
    style axes   colours, layouts and scales that all figures share
    importance   which dimensions matter
    search training machines finals comparison     the figures, a function each
    repeat       what to type to train a trial again
    page         the HTML, from page.html.j2, page.css and page.js
    png          the same figures as files for a paper
    write        puts it together, and where it belongs

A figure is plain data in Plotly's own format: Plotly's Python objects would take a second to import and as long to
check what the tests check. Optuna gives the importances. Its own plots are not used: those of several dimensions
leave out every trial of a conditional space that lacks one of them, none tells outcomes apart, and a contour of a
thousand trials is a matrix of a million numbers. Nothing here is imported by `pharos` itself.
"""
