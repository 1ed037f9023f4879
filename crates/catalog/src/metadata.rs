//! Metadata files of SubpopBench (Yang et al. 2023): one CSV file for all splits of a data set of groups.

use crate::{Grouped, LabeledPath, text};
use equipoise_base::{Error, Result, bail};
use std::path::Path;

/// Columns that are read; others may stand beside them, in any order.
const COLUMNS: [&str; 4] = ["filename", "y", "a", "split"];

/// The images of one split: file, class `y`, context `a`. Relative file names start at `root`.
///
/// # Errors
/// 74 when the file cannot be read; 65 naming the column that is missing, the line that is broken, or the split without
/// images.
pub fn read(file: &Path, root: &Path, split: u32) -> Result<Grouped> {
    let text = text::read(file)?;
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let header = lines.next().map(|(_, line)| fields(line)).unwrap_or_default();
    let column = |name: &str| {
        let missing = || {
            let wanted = COLUMNS.join(", ");
            Error::data(format!("{}: no column '{name}' (want {wanted})", file.display()))
        };
        header.iter().position(|field| field == name).ok_or_else(missing)
    };
    let [path_at, label_at, context_at, split_at] =
        [column(COLUMNS[0])?, column(COLUMNS[1])?, column(COLUMNS[2])?, column(COLUMNS[3])?];
    let mut grouped = Grouped::default();
    for (index, line) in lines {
        let fields = fields(line);
        let field = |at: usize| fields.get(at).map(String::as_str).unwrap_or_default();
        let number = |at: usize| {
            let wrong = |_| {
                let (name, text) = (&header[at], field(at));
                Error::data(format!("{}:{}: {name} is '{text}', not a number", file.display(), index + 1))
            };
            field(at).parse::<u32>().map_err(wrong)
        };
        if number(split_at)? == split {
            grouped.files.push(LabeledPath { path: root.join(field(path_at)), label: number(label_at)? });
            grouped.contexts.push(number(context_at)?);
        }
    }
    if grouped.files.is_empty() {
        bail!(BadData, "{}: no image has split {split}", file.display());
    }
    Ok(grouped)
}

/// The fields of a CSV line; quotes protect commas, two of them stand for one.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    let mut characters = line.trim_end_matches('\r').chars().peekable();
    while let Some(character) = characters.next() {
        let last = fields.len() - 1;
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields[last].push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields[last].push(character),
        }
    }
    fields
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn read_text(text: &str, split: u32) -> Result<Grouped> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metadata.csv");
        std::fs::write(&file, text).unwrap();
        read(&file, Path::new("/data"), split)
    }

    #[test]
    fn one_split_of_any_column_order() {
        let text = "id,split,filename,y,a\r\n7,0,cat/a.jpg,0,1\r\n8,2,/far/b.jpg,1,0\n\n9,0,\"c, \"\"d\"\".jpg\",1,2\n";
        let train = read_text(text, 0).unwrap();
        let paths: Vec<_> = train.files.iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/data/cat/a.jpg", "/data/c, \"d\".jpg"]);
        let labels: Vec<u32> = train.files.iter().map(|file| file.label).collect();
        assert_eq!((labels, train.contexts), (vec![0, 1], vec![1, 2]));
        assert_eq!(read_text(text, 2).unwrap().files[0].path, Path::new("/far/b.jpg"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text: &str| read_text(text, 0).unwrap_err().message().to_string();
        assert!(message("filename,y,split\nx.jpg,0,0\n").contains("no column 'a'"));
        assert!(message("filename,y,a,split\nx.jpg,cat,0,0\n").contains(":2: y is 'cat'"));
        assert!(message("filename,y,a,split\nx.jpg,0,0,1\n").contains("no image has split 0"));
        assert!(message("").contains("no column 'filename'"));
    }
}
