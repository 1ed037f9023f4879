//! Results of tests, as nextest leaves them in JUnit's format.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// `BINARY TEST` to whether it passed.
pub fn read(path: &Path) -> Result<BTreeMap<String, bool>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<BTreeMap<String, bool>> {
    let document = roxmltree::Document::parse(text)?;
    let cases = document.descendants().filter(|node| node.has_tag_name("testcase"));
    cases
        .map(|case| {
            let attribute =
                |name| case.attribute(name).with_context(|| format!("a test case without {name}"));
            let name = format!("{} {}", attribute("classname")?, attribute("name")?);
            // A test that passed at its second try has `flakyFailure`s, which count as passed.
            let failed =
                case.children().any(|child| child.has_tag_name("failure") || child.has_tag_name("error"));
            Ok((name, !failed))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_from_passes_and_flakes() {
        let text = r#"<testsuites><testsuite name="s">
            <testcase name="a" classname="p::s" time="1"/>
            <testcase name="m::b" classname="p::s"><failure type="x">text</failure></testcase>
            <testcase name="c" classname="p"><flakyFailure type="x"/></testcase>
        </testsuite></testsuites>"#;
        let expected = [("p c", true), ("p::s a", true), ("p::s m::b", false)];
        assert_eq!(parse(text).unwrap(), expected.map(|(name, passed)| (name.to_string(), passed)).into());
        assert!(parse("<testsuites>").is_err());
    }
}
