//! A private copy of the server's files, with the extension in it.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::bail;

use crate::Account;
use crate::PgInstall;

/// A private copy of a server's files. PostgreSQL finds its parts by their places relative to each other.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
    bin: PathBuf,
    lib: PathBuf,
    extension: PathBuf,
    /// The major version.
    pub major: u32,
}

impl Tree {
    /// The tree of a purpose, copied from the installation if it is not there yet.
    ///
    /// # Errors
    /// When files cannot be copied.
    pub fn prepare(install: &PgInstall, purpose: &str) -> anyhow::Result<Self> {
        let root = private_folder()?.join(format!("{purpose}{}", install.major));
        let (bin, lib, share, include) = (
            install.ask("--bindir")?,
            install.ask("--pkglibdir")?,
            install.ask("--sharedir")?,
            install.ask("--includedir-server")?,
        );
        // The parts keep their places below a common root, so that the server's own relative look-ups find them.
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        let stamp = root.join("complete");
        // One version may be built in several ways, with assertions for example.
        let version = format!("{}\n{}", install.ask("--version")?, install.ask("--configure")?);
        if fs::read_to_string(&stamp).ok().as_deref() != Some(version.as_str()) {
            let _ = fs::remove_dir_all(&root);
            for part in [&bin, &lib, &share, &include] {
                copy(Path::new(part), &inside(part))?;
            }
            fs::write(&stamp, &version)?;
        }
        Ok(Self {
            bin: inside(&bin),
            lib: inside(&lib),
            extension: inside(&share).join("extension"),
            major: install.major,
            root,
        })
    }

    /// A program of the server.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The tree's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The extension's library, if it was put there.
    pub fn library(&self) -> PathBuf {
        self.lib.join("pg_task.so")
    }

    /// Where the control file and the scripts are.
    pub fn extension_folder(&self) -> &Path {
        &self.extension
    }

    /// Puts the extension into the tree: the library, the control file, the install script, and the scripts of older versions.
    ///
    /// The library is replaced by a new file, never written in place: a server that runs keeps the old one.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn install_extension(&self, library: &Path) -> anyhow::Result<()> {
        let workspace = workspace_root();
        let version = env!("CARGO_PKG_VERSION");
        replace(&self.library(), &fs::read(library).context("failed to read the built library")?)?;
        let control =
            fs::read_to_string(workspace.join("pg_task.control"))?.replace("@CARGO_VERSION@", version);
        replace(&self.extension.join("pg_task.control"), control.as_bytes())?;
        replace(&self.extension.join(format!("pg_task--{version}.sql")), install_script()?.as_bytes())?;
        for folder in ["sql/snapshots", "sql/upgrades"] {
            for file in fs::read_dir(workspace.join(folder)).into_iter().flatten().flatten() {
                if file.path().extension().is_some_and(|extension| extension == "sql") {
                    replace(&self.extension.join(file.file_name()), &fs::read(file.path())?)?;
                }
            }
        }
        Ok(())
    }
}

/// The install script: the numbered files of `sql/`, in their order.
///
/// # Errors
/// When they cannot be read.
pub fn install_script() -> anyhow::Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(workspace_root().join("sql"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit()))
        .collect();
    files.sort();
    files.iter().map(|file| fs::read_to_string(file).context("failed to read the SQL files")).collect()
}

/// The root of the project.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate is two folders deep")
        .to_owned()
}

/// Where everything private is kept: below `target/`, unless the server's account cannot get there.
pub(crate) fn private_folder() -> anyhow::Result<PathBuf> {
    let folder = workspace_root().join("target/pg_task");
    fs::create_dir_all(&folder)?;
    if Account::for_server()?.is_none_or(|account| account.can_reach(&folder)) {
        return Ok(folder);
    }
    // A checkout in a home folder, say. The name tells checkouts apart.
    let mark = folder
        .display()
        .to_string()
        .bytes()
        .fold(0_u32, |mark, byte| mark.wrapping_mul(31).wrapping_add(byte.into()));
    let folder = PathBuf::from(format!("/tmp/pg_task-{mark:08x}"));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let _ = fs::remove_file(path);
    fs::write(path, content).with_context(|| format!("failed to write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let parent = to.parent().context("a part of the server lies at the root")?;
    fs::create_dir_all(parent)?;
    let status = Command::new("cp").arg("-rL").arg(from).arg(to).status().context("failed to run cp")?;
    if !status.success() {
        bail!("failed to copy {} to {}", from.display(), to.display());
    }
    Ok(())
}
