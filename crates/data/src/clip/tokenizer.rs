//! Text to token ids: transformers' `CLIPTokenizerFast`, by the library behind it.

use equipoise_base::{Error, ExitCode, Result, ResultExt as _, ensure};
use equipoise_pretrained::Component;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// What CLIP takes for one piece: a contraction, letters, one digit, or other marks.
const PIECES: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Limits above this are transformers' way of saying none.
const NO_LIMIT: f64 = 1e6;

/// Byte-pair encoding with CLIP's normalisation.
#[derive(Debug)]
pub struct ClipTokenizer {
    pieces: Tokenizer,
    start: i64,
    end: i64,
    pad: i64,
    max_length: Option<usize>,
}

/// Texts as ids.
#[derive(Debug)]
pub struct Tokens {
    /// [N, L] int64: start, pieces, end, padding.
    pub input_ids: Tensor,
    /// [N, L] int64: 1 except on padding.
    pub attention_mask: Tensor,
    /// Ids of each text with start and end, before it was cut or padded.
    pub lengths: Vec<usize>,
}

impl ClipTokenizer {
    /// Loads a tokenizer as it is: `vocab.json` and `merges.txt`, else `tokenizer.json`.
    ///
    /// # Errors
    /// 65 naming the file that is missing or damaged, or the special token that is not in the vocabulary; 74 if one
    /// cannot be read.
    pub fn open(component: &Component) -> Result<Self> {
        let special = SpecialTokens::read(component)?;
        let mut pieces = pieces(component, &special)?;
        special.add_described(&mut pieces, component)?;
        let id = |role: &str, token: &Token| {
            let id = pieces.token_to_id(token.content()).map(i64::from);
            id.ok_or_else(|| {
                let dir = component.dir().display();
                Error::data(format!("{dir}: the {role} token '{}' is not in the vocabulary", token.content()))
            })
        };
        let (start, end) = (id("start", &special.start)?, id("end", &special.end)?);
        let (pad, _) = (id("padding", &special.pad)?, id("unknown", &special.unknown)?);
        pieces.add_special_tokens(&special.by_role());
        Ok(Self { start, end, pad, max_length: special.max_length, pieces })
    }

    /// Longest text in tokens that the folder names, if it does.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> i64 {
        self.pieces.get_vocab(true).into_values().max().map_or(0, |id| i64::from(id) + 1)
    }

    /// Ids of texts, each exactly `length` (at least 2) long: cut with the end kept, or padded.
    ///
    /// # Errors
    /// 65 if the tokenizer of the folder cannot encode a text.
    pub fn encode(&self, texts: &[impl AsRef<str>], length: usize) -> Result<Tokens> {
        assert!(length >= 2, "start and end take two places");
        let shape = [texts.len() as i64, length as i64];
        let (mut ids, mut mask, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            let row = self.row(text.as_ref())?;
            lengths.push(row.len());
            let kept = row.len().min(length);
            ids.extend_from_slice(&row[..kept - 1]);
            ids.push(self.end);
            ids.resize(ids.len() + length - kept, self.pad);
            mask.resize(mask.len() + kept, 1i64);
            mask.resize(mask.len() + length - kept, 0);
        }
        Ok(Tokens {
            input_ids: Tensor::from_slice(&ids).view(shape),
            attention_mask: Tensor::from_slice(&mask).view(shape),
            lengths,
        })
    }

    /// Start, pieces, end.
    fn row(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.pieces.encode_fast(text, false).map_err(|error| damaged(text, &error))?;
        let pieces = encoding.get_ids().iter().map(|&id| i64::from(id));
        Ok([self.start].into_iter().chain(pieces).chain([self.end]).collect())
    }
}

fn damaged(what: impl std::fmt::Display, error: &tokenizers::Error) -> Error {
    Error::data(format!("{what}: {error}"))
}

/// The pieces' model with CLIP's normalisation in front.
fn pieces(component: &Component, special: &SpecialTokens) -> Result<Tokenizer> {
    let dir = component.dir().display();
    match (component.file("vocab.json")?, component.file("merges.txt")?, component.file("tokenizer.json")?) {
        (Some(vocab), Some(merges), _) => from_merges(&vocab, &merges, special),
        (_, _, Some(whole)) => whole_file(&whole),
        (Some(_), None, None) => Err(Error::data(format!("{dir}: a vocabulary without merges.txt"))),
        (None, Some(_), None) => Err(Error::data(format!("{dir}: merges without vocab.json"))),
        (None, None, None) => {
            Err(Error::data(format!("{dir}: neither vocab.json with merges.txt nor tokenizer.json")))
        }
    }
}

fn from_merges(vocab: &Path, merges: &Path, special: &SpecialTokens) -> Result<Tokenizer> {
    let place = || format!("{} with {}", vocab.display(), merges.display());
    let build = || -> tokenizers::Result<(BPE, usize)> {
        let (vocab, merges) = BPE::read_file(&vocab.to_string_lossy(), &merges.to_string_lossy())?;
        let count = merges.len();
        let unknown = special.unknown.content().to_string();
        let builder = BPE::builder().vocab_and_merges(vocab, merges).unk_token(unknown);
        Ok((builder.end_of_word_suffix("</w>".into()).build()?, count))
    };
    let (model, count) = build().map_err(|error| damaged(place(), &error))?;
    ensure!(count > 0, BadData, "{}: no merges", merges.display());
    let mut tokenizer = Tokenizer::new(model);
    clip_pieces(&mut tokenizer).map_err(|error| damaged(place(), &error))?;
    Ok(tokenizer)
}

fn whole_file(path: &Path) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_file(path).map_err(|error| damaged(path.display(), &error))?;
    let json = serde_json::to_value(tokenizer.get_model()).or_exit(ExitCode::BadData, path.display())?;
    let merges = json["merges"].as_array().map_or(0, Vec::len);
    ensure!(merges > 0, BadData, "{}: no merges: this is no byte-pair encoding", path.display());
    // Length is the caller's business.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| damaged(path.display(), &error))?;
    Ok(tokenizer)
}

/// NFC, white space to one blank, lower case; then CLIP's pieces as bytes.
fn clip_pieces(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    let blank = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    tokenizer.with_normalizer(Some(Normalizers::new(vec![NFC.into(), blank.into(), Lowercase.into()])));
    let split = Split::new(SplitPattern::Regex(PIECES.into()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![split.into(), bytes.into()])));
    Ok(())
}

/// A token that stands for itself, as the folder spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Token {
    Plain(String),
    Full {
        content: String,
        #[serde(default)]
        normalized: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        #[serde(default)]
        single_word: bool,
    },
}

impl Token {
    fn content(&self) -> &str {
        match self {
            Token::Plain(content) | Token::Full { content, .. } => content,
        }
    }

    /// How the library finds it in a text.
    fn added(&self) -> AddedToken {
        let token = AddedToken::from(self.content(), true);
        match self {
            Token::Plain(_) => token.normalized(false),
            Token::Full { normalized, lstrip, rstrip, single_word, .. } => {
                token.normalized(*normalized).lstrip(*lstrip).rstrip(*rstrip).single_word(*single_word)
            }
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct Config {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    pad_token: Option<Token>,
    unk_token: Option<Token>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, Token>,
    model_max_length: Option<f64>,
}

/// The tokens with a role.
#[derive(Debug)]
struct SpecialTokens {
    start: Token,
    end: Token,
    pad: Token,
    unknown: Token,
    /// The same and perhaps more by id, with how they are found in a text.
    described: BTreeMap<u32, Token>,
    max_length: Option<usize>,
}

impl SpecialTokens {
    /// As transformers reads them: files that describe their special tokens hold all in `tokenizer_config.json`; in
    /// older ones `special_tokens_map.json` overrules it.
    fn read(component: &Component) -> Result<Self> {
        let config: Config = component.json_file("tokenizer_config.json")?.unwrap_or_default();
        let map: Config = match config.added_tokens_decoder.is_empty() {
            true => component.json_file("special_tokens_map.json")?.unwrap_or_default(),
            false => Config::default(),
        };
        let found = |normalized| {
            move |content: &str| {
                let content = content.to_string();
                Token::Full { content, normalized, lstrip: false, rstrip: false, single_word: false }
            }
        };
        let (text, verbatim) = (found(true), found(false));
        let role = |overruling: Option<Token>, own: Option<Token>, default: &str| match overruling.or(own) {
            Some(Token::Plain(content)) => text(&content),
            Some(token) => token,
            None => text(default),
        };
        let end = role(map.eos_token, config.eos_token, "<|endoftext|>");
        let pad = match map.pad_token.or(config.pad_token) {
            Some(Token::Plain(content)) if content != end.content() => verbatim(&content),
            Some(Token::Plain(_)) | None => end.clone(),
            Some(token) => token,
        };
        Ok(Self {
            start: role(map.bos_token, config.bos_token, "<|startoftext|>"),
            unknown: role(map.unk_token, config.unk_token, "<|endoftext|>"),
            end,
            pad,
            described: config.added_tokens_decoder,
            max_length: config
                .model_max_length
                .filter(|&max| (2. ..NO_LIMIT).contains(&max))
                .map(|max| max as usize),
        })
    }

    /// Adds the tokens that the folder describes, which must get the ids that it says.
    fn add_described(&self, pieces: &mut Tokenizer, component: &Component) -> Result<()> {
        for (&id, token) in &self.described {
            pieces.add_special_tokens(&[token.added()]);
            let (content, got) = (token.content(), pieces.token_to_id(token.content()));
            ensure!(
                got == Some(id),
                BadData,
                "{}: tokenizer_config.json gives '{content}' the id {id}, the vocabulary has {got:?}",
                component.dir().display()
            );
        }
        Ok(())
    }

    /// The tokens with a role that are not described, once each.
    fn by_role(&self) -> Vec<AddedToken> {
        let mut tokens: Vec<&Token> = Vec::new();
        for token in [&self.start, &self.end, &self.pad, &self.unknown] {
            if self
                .described
                .values()
                .chain(tokens.iter().copied())
                .all(|known| known.content() != token.content())
            {
                tokens.push(token);
            }
        }
        tokens.into_iter().map(Token::added).collect()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use serde_json::json;
    use tempfile::TempDir;

    /// A vocabulary of a, b, ! with one merge.
    fn folder() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let words = ["!", "a", "b", "!</w>", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"];
        let vocab: BTreeMap<&str, usize> = words.iter().zip(0..).map(|(word, id)| (*word, id)).collect();
        std::fs::write(dir.path().join("vocab.json"), json!(vocab).to_string()).unwrap();
        std::fs::write(dir.path().join("merges.txt"), "#version: 0.2\na b</w>\n").unwrap();
        dir
    }

    fn open(dir: &TempDir) -> Result<ClipTokenizer> {
        ClipTokenizer::open(&Component::open(dir.path()).unwrap())
    }

    fn ids(tokenizer: &ClipTokenizer, text: &str, length: usize) -> Vec<i64> {
        Vec::try_from(tokenizer.encode(&[text], length).unwrap().input_ids.view(-1)).unwrap()
    }

    #[test]
    fn texts_are_cut_and_padded() {
        let dir = folder();
        let tokenizer = open(&dir).unwrap();
        assert_eq!(ids(&tokenizer, "AB  a!", 7), [7, 6, 4, 3, 8, 8, 8]);
        assert_eq!(ids(&tokenizer, "ab ab ab ab", 4), [7, 6, 6, 8]);
        let tokens = tokenizer.encode(&["ab ab ab ab", ""], 4).unwrap();
        assert_eq!(tokens.lengths, [6, 2]);
        assert_eq!(Vec::<i64>::try_from(tokens.attention_mask.get(1)).unwrap(), [1, 1, 0, 0]);
        assert_eq!((tokenizer.vocab_size(), tokenizer.max_length()), (9, None));
    }

    #[test]
    fn old_and_new_spellings_of_the_padding_token() {
        let dir = folder();
        let put = |name: &str, json: serde_json::Value| {
            std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        };
        put("tokenizer_config.json", json!({ "pad_token": "<|endoftext|>", "model_max_length": 1e30 }));
        put("special_tokens_map.json", json!({ "pad_token": "!" }));
        let tokenizer = open(&dir).unwrap();
        assert_eq!((ids(&tokenizer, "a!!", 6), tokenizer.max_length()), (vec![7, 4, 0, 0, 8, 0], None));
        let described = json!({
            "pad_token": "!", "model_max_length": 77,
            "added_tokens_decoder": { "0": { "content": "!", "special": true } },
        });
        put("tokenizer_config.json", described);
        put("special_tokens_map.json", json!({ "pad_token": "<|endoftext|>" }));
        let tokenizer = open(&dir).unwrap();
        assert_eq!((ids(&tokenizer, "a!!", 6), tokenizer.max_length()), (vec![7, 4, 0, 0, 8, 0], Some(77)));
    }

    #[test]
    fn a_whole_file_gives_the_same_ids() {
        let dir = folder();
        let parts = open(&dir).unwrap();
        parts.pieces.save(dir.path().join("tokenizer.json"), false).unwrap();
        std::fs::remove_file(dir.path().join("vocab.json")).unwrap();
        std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
        let whole = open(&dir).unwrap();
        assert_eq!(ids(&whole, "Ab b! a", 9), ids(&parts, "Ab b! a", 9));
    }

    #[test]
    fn what_is_missing_is_named() {
        let message = |change: &dyn Fn(&Path)| {
            let dir = folder();
            change(dir.path());
            let error = open(&dir).unwrap_err();
            assert_eq!(error.code(), ExitCode::BadData);
            error.message().to_string()
        };
        let remove = |name: &'static str| move |dir: &Path| std::fs::remove_file(dir.join(name)).unwrap();
        let put = |name: &'static str, text: &'static str| {
            move |dir: &Path| std::fs::write(dir.join(name), text).unwrap()
        };
        assert!(message(&remove("merges.txt")).contains("a vocabulary without merges.txt"));
        assert!(message(&remove("vocab.json")).contains("merges without vocab.json"));
        assert!(message(&put("merges.txt", "#version: 0.2\n")).contains("merges.txt: no merges"));
        assert!(message(&put("merges.txt", "x y\n")).contains("merges.txt"));
        assert!(message(&put("vocab.json", "[")).contains("vocab.json"));
        assert!(
            message(&put("tokenizer_config.json", "{\"pad_token\": \"?\"}"))
                .contains("not in the vocabulary")
        );
        assert!(
            message(&put("tokenizer_config.json", "{\"pad_token\": 3}")).contains("tokenizer_config.json")
        );
    }
}
