//! What a text-to-image generator is told about a class.

use crate::text;
use equipoise_base::rng::Key;
use equipoise_base::{Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Stands for the name of the class in a sentence.
const CLASS: &str = "{class}";

/// Stands for the name of the context in a sentence.
const CONTEXT: &str = "{context}";

/// Quantifiers of seed 000's special templates (Section 1.1).
const QUANTIFIERS: [&str; 3] = ["a", "several", "a school of"];

/// Template of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PromptConfig {
    /// A sentence with {class} in it and, where classes have contexts, {context}: "{class}" (seed 002), "a photo of a
    /// {class}" (CLIP), "{class} in {context}" (seed 002 on NICO++).
    Sentence(String),
    /// Special templates: "A photo of {quantifier} {class} in {place}.", three quantifiers for each place where the
    /// class can be found (seed 000, Section 1.1); an image draws one of them.
    Special(SpecialTemplates),
}

/// Special templates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecialTemplates {
    /// Compatible pairs: lines of class, tab, place. Places may be spelt as Places-365 does.
    pub places: PathBuf,
}

/// Sentences of every class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// By class; {context} is still to be filled in.
    sentences: Vec<Vec<String>>,
}

impl PromptConfig {
    /// The sentences of classes with these names.
    ///
    /// # Errors
    /// 78 if the sentence is empty; 65 naming the line of the places' file that fits no class, or the class that has no
    /// place; 74 if the file cannot be read.
    pub fn build(&self, classes: &[String]) -> Result<Prompts> {
        let sentences = match self {
            PromptConfig::Sentence(text) => {
                ensure!(!text.trim().is_empty(), Config, "prompt is empty: try \"a photo of a {CLASS}\"");
                classes.iter().map(|class| vec![text.replace(CLASS, class)]).collect()
            }
            PromptConfig::Special(SpecialTemplates { places }) => special(places, classes)?,
        };
        Ok(Prompts { sentences })
    }
}

impl Prompts {
    /// Sentences of a class, each once; `context` is empty where classes have none.
    ///
    /// # Errors
    /// 78 if the sentences want a context and there is none.
    pub fn of(&self, class: usize, context: &str) -> Result<Vec<String>> {
        let sentences = &self.sentences[class];
        ensure!(
            !context.is_empty() || !sentences.iter().any(|sentence| sentence.contains(CONTEXT)),
            Config,
            "prompt: \"{}\" wants a context, but this data set has none",
            sentences[0]
        );
        Ok(sentences.iter().map(|sentence| sentence.replace(CONTEXT, context)).collect())
    }

    /// Position of an image's sentence among those of its class: a function of run seed, class and index.
    pub fn choose(&self, seed: u64, class: usize, index: u64) -> usize {
        let key = Key::new(seed, "prompt").class(class as u64).index(index);
        key.stream().below(self.sentences[class].len() as u64) as usize
    }
}

/// Three quantifiers for each compatible place, in the order of the file.
fn special(file: &Path, classes: &[String]) -> Result<Vec<Vec<String>>> {
    let known: BTreeMap<&str, usize> = classes.iter().map(String::as_str).zip(0..).collect();
    let (mut sentences, mut seen) = (vec![Vec::new(); classes.len()], BTreeSet::new());
    let text = text::read(file)?;
    for (number, line) in text::lines(&text) {
        let place = format!("{}:{number}", file.display());
        let Some((name, found)) = line.split_once('\t') else {
            bail!(BadData, "{place}: want a class, a tab and a place")
        };
        let (name, found) = (name.trim(), in_words(found));
        let Some(&class) = known.get(name) else { bail!(BadData, "{place}: no class is called '{name}'") };
        ensure!(!found.is_empty(), BadData, "{place}: no place after the tab");
        if seen.insert((class, found.clone())) {
            let sentence = |quantifier| format!("A photo of {quantifier} {name} in {found}.");
            sentences[class].extend(QUANTIFIERS.map(sentence));
        }
    }
    if let Some(class) = sentences.iter().position(Vec::is_empty) {
        bail!(BadData, "{}: no place for the class '{}'", file.display(), classes[class]);
    }
    Ok(sentences)
}

/// Places-365's `/b/bus_station/indoor` as "bus station indoor"; other spellings stay.
fn in_words(place: &str) -> String {
    let place = place.trim();
    let listed =
        place.strip_prefix('/').and_then(|rest| rest.split_once('/')).filter(|(letter, _)| letter.len() == 1);
    match listed {
        Some((_, name)) => name.replace(['_', '/'], " "),
        None => place.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn classes() -> Vec<String> {
        ["sea lion", "plane"].map(str::to_string).to_vec()
    }

    fn sentence(text: &str) -> Prompts {
        PromptConfig::Sentence(text.into()).build(&classes()).unwrap()
    }

    #[test]
    fn sentences_name_class_and_context() {
        assert_eq!(sentence("{class}").of(0, "").unwrap(), ["sea lion"]);
        assert_eq!(sentence("a {class}, one {class}").of(1, "").unwrap(), ["a plane, one plane"]);
        let nico = sentence("{class} in {context}");
        assert_eq!(nico.of(0, "autumn").unwrap(), ["sea lion in autumn"]);
        let error = nico.of(1, "").unwrap_err();
        assert!(error.message().contains("\"plane in {context}\" wants a context"), "{error}");
        assert!(PromptConfig::Sentence(" ".into()).build(&classes()).is_err());
    }

    #[test]
    fn spellings_in_a_recipe() {
        let read = |json: &str| serde_json::from_str::<PromptConfig>(json);
        assert_eq!(read(r#""a {class}""#).unwrap(), PromptConfig::Sentence("a {class}".into()));
        assert!(matches!(read(r#"{"places": "a.tsv"}"#).unwrap(), PromptConfig::Special(_)));
        assert!(read(r#"{"place": "a.tsv"}"#).is_err());
    }

    #[test]
    fn special_templates_follow_the_places() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("places.tsv");
        let build = |text: &str| {
            std::fs::write(&file, text).unwrap();
            PromptConfig::Special(SpecialTemplates { places: file.clone() }).build(&classes())
        };
        let places = "# who is where\nplane\t/a/airfield\nsea lion\tocean\n";
        let again = "plane\t/b/bus_station/indoor\nplane\t/a/airfield\n";
        let prompts = build(&format!("{places}{again}")).unwrap();
        assert_eq!(prompts.of(0, "").unwrap()[1], "A photo of several sea lion in ocean.");
        let plane = prompts.of(1, "").unwrap();
        assert_eq!((plane.len(), plane[3].as_str()), (6, "A photo of a plane in bus station indoor."));
        let drawn: BTreeSet<usize> = (0..200).map(|index| prompts.choose(3, 1, index)).collect();
        assert_eq!(drawn, (0..6).collect());
        assert_eq!(prompts.choose(3, 1, 7), prompts.choose(3, 1, 7));
        let message = |text: &str| build(text).unwrap_err().message().to_string();
        assert!(message("plane\tsky\n").ends_with("no place for the class 'sea lion'"));
        assert!(message("plane\tsky\ncar\troad\n").contains("places.tsv:2: no class is called 'car'"));
        assert!(message("plane sky\n").contains("places.tsv:1: want a class, a tab"));
        assert!(message("plane\t \n").contains("places.tsv:1"));
    }
}
