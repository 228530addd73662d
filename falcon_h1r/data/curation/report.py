def write_report(folder):
    (folder / "data_report.html").write_text("")
